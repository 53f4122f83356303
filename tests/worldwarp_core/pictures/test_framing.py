import numpy as np
import pytest

from worldwarp_core.pictures.framing import GRID, resize_map, resize_picture, working_size


@pytest.mark.parametrize("size", [(256, 144), (1920, 1080), (64, 36), (1080, 1920), (17, 300), (16384, 16)])
def test_the_working_size_is_on_the_grid_and_within_the_limit(size):
    width, height = working_size(*size, max_pixels=512 * 288)
    assert width % GRID == 0
    assert height % GRID == 0
    assert width * height <= 512 * 288 * 1.2 or min(width, height) == GRID


def test_a_size_on_the_grid_and_within_the_limit_is_kept():
    assert working_size(256, 144, 512 * 288) == (256, 144)


def test_a_picture_of_the_right_size_is_untouched():
    picture = np.random.default_rng(0).integers(0, 256, (36, 64, 3), np.uint8)
    assert resize_picture(picture, 64, 36) is picture


def test_a_resized_map_holds_only_values_that_were_there():
    depth = np.random.default_rng(0).uniform(1, 9, (36, 64)).astype(np.float32)
    resized = resize_map(depth, 100, 70)
    assert resized.shape == (70, 100)
    assert np.isin(resized, depth).all()
    assert (resize_map(resize_map(depth, 128, 72), 64, 36) == depth).all()


@pytest.mark.parametrize("size", [(64, 36), (100, 70), (30, 20)])
def test_a_map_is_put_where_it_is_wanted(size):
    depth = np.random.default_rng(0).uniform(1, 9, (36, 64)).astype(np.float32)
    out = np.empty(size[::-1], np.float32)
    assert resize_map(depth, *size, out=out) is out
    assert (out == resize_map(depth, *size)).all()
