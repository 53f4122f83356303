"""Start frames and depth from files written by other libraries, and every way in which a file can be wrong."""

import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.pictures.exr import write_depth_exr
from worldwarp_core.pictures.files import (
    read_depth,
    read_path_depth,
    read_start_frame,
    read_strength_mask,
    read_style_image,
)

RNG = np.random.default_rng(3)
FRAME = RNG.integers(0, 256, (18, 32, 3), dtype=np.uint8)
RAMP_X, RAMP_Y = np.meshgrid(np.linspace(0, 255, 32), np.linspace(0, 255, 18))
SMOOTH = np.stack([RAMP_X, RAMP_Y, np.full_like(RAMP_X, 99.0)], -1).astype(np.uint8)


def refused(code, match, read, path, **options):
    with pytest.raises(WorldWarpError, match=match) as caught:
        read(path, **options)
    assert caught.value.code == code
    assert str(path) in caught.value.message or "scale" in match


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "tga", "ppm", "webp", "jp2"])
def test_lossless_files_are_read_to_the_bit(tmp_path, suffix):
    lossless = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(FRAME).save(tmp_path / f"start.{suffix}", **lossless)
    frame = read_start_frame(tmp_path / f"start.{suffix}")
    assert frame.dtype == np.uint8
    assert frame.flags.writeable
    np.testing.assert_array_equal(frame, FRAME)


def test_a_jpeg_with_the_wrong_suffix_is_read(tmp_path):
    Image.fromarray(SMOOTH).save(tmp_path / "start.png", format="JPEG", quality=95)
    assert np.abs(read_start_frame(tmp_path / "start.png").astype(int) - SMOOTH).max() < 12


def test_grey_palette_and_cmyk_become_rgb(tmp_path):
    grey = Image.fromarray(FRAME[..., 0])
    grey.save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_start_frame(tmp_path / "grey.png"), FRAME[..., :1].repeat(3, -1))
    palette = Image.fromarray(SMOOTH).quantize(64)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_start_frame(tmp_path / "palette.png"), np.array(palette.convert("RGB")))
    Image.fromarray(SMOOTH).convert("CMYK").save(tmp_path / "cmyk.tiff")
    assert np.abs(read_start_frame(tmp_path / "cmyk.tiff").astype(int) - SMOOTH).max() <= 1


def test_sixteen_bits_are_narrowed(tmp_path):
    cv2 = pytest.importorskip("cv2", reason="OpenCV, which writes 16-bit colour, is part of the engine")
    wide = (FRAME.astype(np.uint16) * 257)[..., ::-1]
    cv2.imwrite(str(tmp_path / "wide.png"), wide)
    np.testing.assert_array_equal(read_start_frame(tmp_path / "wide.png"), FRAME)
    Image.fromarray(wide[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_start_frame(tmp_path / "grey.png"), FRAME[..., 2:].repeat(3, -1))


def test_transparency_is_laid_over_black(tmp_path):
    alpha = np.full((18, 32, 1), 255, np.uint8)
    alpha[:, :8], alpha[:, 8:16] = 0, 128
    Image.fromarray(np.concatenate([FRAME, alpha], -1)).save(tmp_path / "start.png")
    frame = read_start_frame(tmp_path / "start.png")
    assert not frame[:, :8].any()
    assert np.abs(frame[:, 8:16] - FRAME[:, 8:16] * (128 / 255)).max() <= 1
    np.testing.assert_array_equal(frame[:, 16:], FRAME[:, 16:])


def test_a_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right side of the stored image
    Image.fromarray(FRAME).save(tmp_path / "start.png", exif=exif)
    np.testing.assert_array_equal(read_start_frame(tmp_path / "start.png"), np.rot90(FRAME, -1))


def wide_gamut_profile():
    """sRGB's curve on Display P3's primaries is in no library here, so: sRGB's profile with red and green swapped."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile = profile.replace(b"rXYZ", b"tmp!").replace(b"gXYZ", b"rXYZ").replace(b"tmp!", b"gXYZ")
    return bytes(profile.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")))


def test_a_colour_profile_is_brought_to_srgb(tmp_path):
    Image.fromarray(FRAME).save(tmp_path / "swapped.png", icc_profile=wide_gamut_profile())
    np.testing.assert_allclose(read_start_frame(tmp_path / "swapped.png"), FRAME[..., [1, 0, 2]], atol=2)


def test_the_srgb_profile_changes_nothing(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(FRAME).save(tmp_path / "start.png", icc_profile=profile)
    np.testing.assert_array_equal(read_start_frame(tmp_path / "start.png"), FRAME)
    Image.fromarray(FRAME[..., 0]).save(tmp_path / "grey.png", icc_profile=profile)
    np.testing.assert_array_equal(read_start_frame(tmp_path / "grey.png"), FRAME[..., :1].repeat(3, -1))


def test_a_damaged_profile_is_refused(tmp_path):
    Image.fromarray(FRAME).save(tmp_path / "start.png", icc_profile=b"not a profile")
    refused("bad_start_frame", "cannot be read", read_start_frame, tmp_path / "start.png")


def test_a_missing_start_frame_says_so(tmp_path):
    refused("bad_start_frame", "There is no start frame", read_start_frame, tmp_path / "gone.png")
    refused("bad_start_frame", "There is no start frame", read_start_frame, tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
def test_a_start_frame_that_is_not_whole_is_refused_wherever_it_ends(tmp_path, suffix):
    Image.fromarray(FRAME).save(tmp_path / f"whole.{suffix}")
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for share in (0.0, 0.01, 0.1, 0.5, 0.8):
        cut.write_bytes(content[: int(share * len(content))])
        refused("bad_start_frame", "cannot be read", read_start_frame, cut)


def test_a_png_with_a_broken_chunk_is_refused(tmp_path):
    Image.fromarray(FRAME).save(tmp_path / "start.png")
    content = bytearray((tmp_path / "start.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "start.png").write_bytes(content)
    refused("bad_start_frame", "cannot be read", read_start_frame, tmp_path / "start.png")


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "start.png").write_text("a letter")
    refused("bad_start_frame", "cannot be read", read_start_frame, tmp_path / "start.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "linear.tiff")
    refused("bad_start_frame", "floating-point", read_start_frame, tmp_path / "linear.tiff")


def test_a_format_whose_decoder_runs_another_program_is_not_even_opened(tmp_path):
    (tmp_path / "start.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with Image.open(tmp_path / "start.png") as image:
        assert image.format == "EPS", "Pillow by itself would"
    refused("bad_start_frame", "cannot identify image file", read_start_frame, tmp_path / "start.png")


def png_that_claims(width, height, bits=8, colour=2):
    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, colour, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(9_999, 9_999), (20_000, 10), (1_000_000, 1_000_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_small_file_that_claims_to_be_huge_is_not_decoded(tmp_path, width, height):
    (tmp_path / "bomb.png").write_bytes(png_that_claims(width, height))
    refused("bad_start_frame", "megapixels|too large", read_start_frame, tmp_path / "bomb.png")
    (tmp_path / "depth.png").write_bytes(png_that_claims(width, height, bits=16, colour=0))
    refused("bad_depth", "pixels", read_depth, tmp_path / "depth.png", scale=0.001)


DEPTH = RNG.uniform(0.5, 400, (18, 32)).astype(np.float32)


def test_background_is_one_value_in_every_float_file(tmp_path):
    depth = DEPTH.copy()
    depth[0, :4] = [np.inf, 1e10, 1.0001e10, 1e30]
    expected = depth.copy()
    expected[0, :4] = 1e10
    write_depth_exr(tmp_path / "depth.exr", depth)
    np.save(tmp_path / "depth.npy", depth.astype(np.float64))
    for name in ("depth.exr", "depth.npy"):
        read = read_depth(tmp_path / name)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, expected)
        scaled = read_depth(tmp_path / name, scale=0.001)
        np.testing.assert_allclose(scaled[1:], expected[1:] * 0.001, rtol=1e-6)
        assert (scaled[0, :4] == np.float32(1e10)).all(), "background is no distance and is not scaled"


def test_double_precision_beyond_float32_is_background(tmp_path):
    np.save(tmp_path / "depth.npy", np.array([[1.0, 1e300]]))
    np.testing.assert_array_equal(read_depth(tmp_path / "depth.npy"), np.float32([[1.0, 1e10]]))


def test_nan_and_negative_depth_are_left_to_be_refused_by_count(tmp_path):
    np.save(tmp_path / "depth.npy", np.float32([[np.nan, -1.0, 2.0]]))
    np.testing.assert_array_equal(read_depth(tmp_path / "depth.npy"), np.float32([[np.nan, -1.0, 2.0]]))


def test_a_depth_png_counts_in_the_scale_given(tmp_path):
    counts = RNG.integers(1, 65535, (18, 32), dtype=np.uint16)
    counts[0, :2] = [0, 65535]
    Image.fromarray(counts).save(tmp_path / "depth.png")
    refused("bad_depth", "--depth-scale", read_depth, tmp_path / "depth.png")
    depth = read_depth(tmp_path / "depth.png", scale=0.001)
    assert (depth[0, :2] == np.float32(1e10)).all(), "nothing measured, and too far to count"
    np.testing.assert_allclose(depth[1:], counts[1:] * 0.001, rtol=1e-6)


def test_opencv_s_depth_png_is_read(tmp_path):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is part of the engine")
    counts = RNG.integers(1, 65535, (18, 32), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "depth.png"), counts)
    np.testing.assert_allclose(read_depth(tmp_path / "depth.png", scale=0.25), counts * 0.25)


def test_an_array_of_counts_needs_a_scale_too(tmp_path):
    np.save(tmp_path / "depth.npy", np.array([[1000, 0, 2000]], np.int32))
    refused("bad_depth", "--depth-scale", read_depth, tmp_path / "depth.npy")
    np.testing.assert_allclose(read_depth(tmp_path / "depth.npy", scale=0.001), np.float32([[1, 1e10, 2]]))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_must_be_positive(tmp_path, scale):
    np.save(tmp_path / "depth.npy", DEPTH)
    refused("bad_depth", "depth scale must be above 0", read_depth, tmp_path / "depth.npy", scale=scale)


def test_missing_and_foreign_depth_files_are_refused(tmp_path):
    refused("bad_depth", "There is no depth file", read_depth, tmp_path / "gone.exr")
    (tmp_path / "depth.exr").write_text("a letter")
    refused("bad_depth", "neither OpenEXR nor NumPy .npy nor PNG", read_depth, tmp_path / "depth.exr")
    (tmp_path / "empty.exr").write_bytes(b"")
    refused("bad_depth", "neither", read_depth, tmp_path / "empty.exr")


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.ones((4, 4, 3)), r"\(height, width\) array of numbers; got float64 \(4, 4, 3\)"),
        (np.ones((0, 4)), r"got float64 \(0, 4\)"),
        (np.ones((1, 16_385), np.float16), "16385"),
        (np.ones((4, 4), complex), "complex"),
        (np.array([["a"]]), "got <U1"),
    ],
)
def test_arrays_that_are_no_depth_image_are_refused(tmp_path, array, match):
    np.save(tmp_path / "depth.npy", array)
    refused("bad_depth", match, read_depth, tmp_path / "depth.npy")


def test_pickled_and_lying_arrays_are_refused(tmp_path):
    np.save(tmp_path / "depth.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused("bad_depth", "not a whole .npy", read_depth, tmp_path / "depth.npy")
    np.save(tmp_path / "depth.npy", DEPTH)
    content = (tmp_path / "depth.npy").read_bytes()
    for end in (8, 60, 200, len(content) - 1):
        (tmp_path / "depth.npy").write_bytes(content[:end])
        refused("bad_depth", "not a whole .npy", read_depth, tmp_path / "depth.npy")
    (tmp_path / "depth.npy").write_bytes(content.replace(b"(18, 32)", b"(9999999999, 9999999)"))
    refused("bad_depth", "not a whole .npy", read_depth, tmp_path / "depth.npy")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "P"])
def test_a_depth_png_of_another_kind_is_refused(tmp_path, mode):
    Image.fromarray(FRAME).convert(mode).save(tmp_path / "depth.png")
    refused("bad_depth", "grey with 16 bits", read_depth, tmp_path / "depth.png", scale=0.01)


def test_a_depth_png_that_is_not_whole_is_refused(tmp_path):
    Image.fromarray(RNG.integers(0, 65535, (18, 32), dtype=np.uint16)).save(tmp_path / "depth.png")
    content = (tmp_path / "depth.png").read_bytes()
    for end in (20, len(content) // 2):
        (tmp_path / "depth.png").write_bytes(content[:end])
        refused("bad_depth", "damaged or not whole", read_depth, tmp_path / "depth.png", scale=0.01)


def test_a_mask_drawn_in_grey_is_from_minus_one_to_one_about_mid_grey(tmp_path):
    Image.fromarray(np.uint8([[0, 1, 128, 255]])).save(tmp_path / "mask.png")
    mask = read_strength_mask(tmp_path / "mask.png")
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, np.float32([[[-1, -1, 0, 1]]]))


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_an_array_of_masks_is_taken_as_it_is(tmp_path, shape):
    stored = RNG.uniform(-1, 1, shape)
    np.save(tmp_path / "mask.npy", stored)
    mask = read_strength_mask(tmp_path / "mask.npy")
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, stored.astype(np.float32).reshape(-1, 3, 4))


@pytest.mark.parametrize("array", [np.ones(4), np.full((3, 4), 1.5), np.full((3, 4), np.nan), np.array([["a"]])])
def test_arrays_that_are_no_mask_are_refused(tmp_path, array):
    np.save(tmp_path / "mask.npy", array)
    refused("bad_strength_mask", "numbers from -1 to 1", read_strength_mask, tmp_path / "mask.npy")


def test_a_picture_that_cannot_be_read_is_called_what_it_is_for(tmp_path):
    (tmp_path / "a.png").write_text("a letter")
    refused("bad_style_image", "The style image .*a.png cannot be read", read_style_image, tmp_path / "a.png")
    refused("bad_strength_mask", "The strength mask .*a.png cannot", read_strength_mask, tmp_path / "a.png")
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY and no more")
    refused("bad_strength_mask", "cannot be read", read_strength_mask, tmp_path / "a.npy")


def test_a_paths_depth_is_read_by_the_numbers_in_its_files_names(tmp_path):
    for name, value in (("shot-0002.exr", 2.0), ("depth_-001.exr", 9.0), ("Z0004.EXR", 4.0), ("z_0099.exr", 1.0)):
        write_depth_exr(tmp_path / name, np.full((18, 32), value, np.float32))
    np.save(tmp_path / "depth3.npy", np.full((18, 32), np.inf, np.float32))
    (tmp_path / "notes_0002.txt").write_text("?")
    given = read_path_depth(tmp_path, np.arange(-1, 6))
    assert given.frames.tolist() == [-1, 2, 3, 4]
    assert given.depth.dtype == np.float16
    assert given.depth[:, 0, 0].tolist() == [9.0, 2.0, np.inf, 4.0]


def test_large_maps_of_a_path_are_sampled_and_never_mixed(tmp_path):
    depth = np.full((1080, 1920), 2.0, np.float32)
    depth[:, 960:] = 50.0
    write_depth_exr(tmp_path / "z_0001.exr", depth)
    (values,) = read_path_depth(tmp_path, np.array([1])).depth
    assert values.shape == (270, 480)
    assert (values[:, :240] == 2.0).all()
    assert (values[:, 240:] == 50.0).all()


def test_a_folder_that_is_no_paths_depth_is_refused_with_what_is_wanted(tmp_path):
    frames = np.arange(1, 4)
    refused("bad_path_depth", "There is no folder", read_path_depth, tmp_path / "nowhere", frames=frames)
    refused("bad_path_depth", "frames 1 to 3.*such as depth_0001.exr", read_path_depth, tmp_path, frames=frames)
    write_depth_exr(tmp_path / "depth_0001.exr", np.ones((18, 32), np.float32))
    write_depth_exr(tmp_path / "depth_0002.exr", np.ones((9, 16), np.float32))
    refused("bad_path_depth", "differ in size", read_path_depth, tmp_path, frames=frames)
    write_depth_exr(tmp_path / "rgb_0001.exr", np.ones((18, 32), np.float32))
    refused(
        "bad_path_depth", "depth_0001.exr and rgb_0001.exr .* both of frame 1", read_path_depth, tmp_path, frames=frames
    )
    (tmp_path / "depth_0003.exr").write_bytes(b"no EXR")
    (tmp_path / "rgb_0001.exr").unlink()
    with pytest.raises(WorldWarpError, match=r"depth_0003\.exr") as caught:
        read_path_depth(tmp_path, frames)
    assert caught.value.code == "bad_depth"
