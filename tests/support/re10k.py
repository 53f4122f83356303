"""A clip in the layout of RealEstate10K."""

from PIL import Image


def write_re10k(folder, flight, pictures, skip=()):
    """Writes test/<id>.txt and frames/test/<id>/<timestamp>.png; the frames at the positions `skip` are missing."""
    (folder / "test").mkdir(parents=True)
    place = folder / "frames" / "test" / "0a1b2c3d4e5f6789"
    place.mkdir(parents=True)
    lines = ["https://www.youtube.com/watch?v=xxxxxxxxxxx"]
    for frame, picture in enumerate(pictures):
        stamp = 33_000 * frame + 52_553_000
        K, w2c = flight.K[frame], flight.w2c[frame]
        lens = K[0, 0] / flight.width, K[1, 1] / flight.height, K[0, 2] / flight.width, K[1, 2] / flight.height
        numbers = [*lens, 0, 0, *w2c[:3].ravel()]
        lines.append(" ".join([str(stamp), *(f"{number:.9f}" for number in numbers)]))
        if frame not in skip:
            Image.fromarray(picture).save(place / f"{stamp}.png")
    (folder / "test" / "0a1b2c3d4e5f6789.txt").write_text("\n".join(lines) + "\n")
