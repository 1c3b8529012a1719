"""Which part of a picture is kept, and how it is resized."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures.preparing import crop_window, prepare_picture
from tests.pictures.samples import HEIGHT, WIDTH, noise, only_colour, prepared, row, settings


@pytest.mark.parametrize(
    ("size", "target", "more", "window"),
    [
        ((200, 100), (64, 64), {}, (50, 0, 150, 100)),
        ((100, 200), (64, 64), {}, (0, 50, 100, 150)),
        ((97, 64), (64, 64), {}, (16, 0, 80, 64)),  # 16.5 goes to whole pixels, so that nothing is blurred
        ((300, 100), (128, 64), {}, (50, 0, 250, 100)),
        ((200, 100), (64, 64), {"focus": [0.5, 0.5]}, (50, 0, 150, 100)),
        ((200, 100), (64, 64), {"focus": [0.0, 1.0]}, (0, 0, 100, 100)),
        ((200, 100), (64, 64), {"focus": [0.6, 0.0]}, (70, 0, 170, 100)),
        ((200, 100), (64, 64), {"focus": [1, 0]}, (100, 0, 200, 100)),
        # a box of 20 x 40 pixels about (50, 50) grows to 40 x 40
        ((200, 100), (64, 64), {"box": [0.2, 0.3, 0.3, 0.7]}, (30, 30, 70, 70)),
        # and to 80 x 40 for twice as wide
        ((200, 100), (128, 64), {"box": [0.2, 0.3, 0.3, 0.7]}, (10, 30, 90, 70)),
        # at the corner it moves inside
        ((200, 100), (64, 64), {"box": [0.95, 0.0, 1.0, 0.4]}, (160, 0, 200, 40)),
        # wider than any square of the picture: the largest one, about the middle of the box
        ((200, 100), (64, 64), {"box": [0.1, 0.4, 0.7, 0.6]}, (30, 0, 130, 100)),
        # a box wins over a focus; one smaller than a pixel is grown to a pixel
        ((200, 100), (64, 64), {"box": [0.5, 0.5, 0.5001, 0.5001], "focus": [0, 0]}, (100, 50, 101, 51)),
        ((1, 1000), (128, 64), {}, (0, 500, 1, 500.5)),
    ],
)
def test_crop_window(
    size: tuple[int, int], target: tuple[int, int], more: dict[str, list[float]], window: tuple[float, ...]
) -> None:
    assert crop_window(size, target, row(**more)) == pytest.approx(window)


def test_windows_never_leave_the_picture() -> None:
    chance = np.random.default_rng(3)
    for number in range(500):
        size = (int(chance.integers(1, 500)), int(chance.integers(1, 500)))
        target = (8 * int(chance.integers(8, 65)), 8 * int(chance.integers(8, 65)))
        edges = np.sort(chance.random((2, 2)), axis=0).ravel().tolist()
        more = [{}, {"focus": chance.random(2).tolist()}, {"box": edges}][int(chance.integers(3))]
        left, top, right, bottom = crop_window(size, target, row(**more))
        assert 0 <= left < right <= size[0] + 1e-9
        assert 0 <= top < bottom <= size[1] + 1e-9
        assert (right - left) / (bottom - top) == pytest.approx(target[0] / target[1])
        if number % 20 == 0:  # Pillow too finds it within
            Image.new("L", size).resize(target, Image.Resampling.LANCZOS, box=(left, top, right, bottom))


def test_the_focus_is_of_the_upright_picture(tmp_path: Path) -> None:
    upright = np.zeros((192, 96, 3), np.uint8)
    upright[:64, :, 0] = 255  # red at the top
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(upright, 1))).save(tmp_path / "a.png", exif=exif)
    image, entry = prepare_picture(tmp_path / "a.png", row(focus=[0.5, 0]), settings())
    assert only_colour(np.asarray(image)) == (255, 0, 0)
    assert (entry["size"], entry["crop"]) == ([96, 192], [0, 0, 96, 64])


def test_cropping_alone_keeps_every_pixel(tmp_path: Path) -> None:
    Image.fromarray(noise(HEIGHT, 131)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(prepared(tmp_path / "a.png")[0], noise(HEIGHT, 131)[:, 18:114])


def test_the_window_is_not_rounded_to_whole_pixels(tmp_path: Path) -> None:
    rows = np.arange(9) * 28.0
    picture = np.broadcast_to(rows[:, None, None], (9, 13, 3)).astype(np.uint8)
    Image.fromarray(np.ascontiguousarray(picture)).save(tmp_path / "a.png")
    pixels, _ = prepared(tmp_path / "a.png", resample="bicubic")
    # 13 pixels wide is 8 2/3 high at 3:2, from the top: pixel y shows the height (y + 1/2) * 8 2/3 / 64
    heights = (np.arange(HEIGHT) + 0.5) * (26 / 3) / HEIGHT - 0.5
    expected = np.interp(heights, np.arange(9), rows)
    assert np.abs(pixels[14:50, 48, 0] - expected[14:50]).max() < 2


def test_area_is_the_plain_average(tmp_path: Path) -> None:
    source = noise(2 * HEIGHT, 2 * WIDTH)
    Image.fromarray(source).save(tmp_path / "a.png")
    average = source.reshape(HEIGHT, 2, WIDTH, 2, 3).mean(axis=(1, 3))
    pixels, _ = prepared(tmp_path / "a.png", resample="area")
    assert np.abs(pixels - average).max() <= 1  # Pillow rounds twice
    for other in ("lanczos", "bicubic"):
        assert np.abs(prepared(tmp_path / "a.png", resample=other)[0] - average).max() > 2
