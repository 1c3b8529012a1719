"""Every mode, alpha and colour profile becomes the sRGB that a hand-worked number gives."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.pictures.samples import HEIGHT, WIDTH, noise, only_colour, palette, plain, prepared, swapped_profile


@pytest.mark.parametrize(
    ("picture", "background", "colour"),
    [
        # 64/255 of the picture and 191/255 of the background
        (plain("RGBA", (200, 100, 0, 64)), (255, 255, 255), (241, 216, 191)),
        (plain("LA", (100, 128)), (0, 0, 255), (50, 50, 177)),
        (plain("RGBA", (200, 100, 0, 0)), (1, 2, 3), (1, 2, 3)),
    ],
)
def test_alpha_shows_the_background(
    tmp_path: Path, picture: Image.Image, background: tuple[int, int, int], colour: tuple[int, int, int]
) -> None:
    picture.save(tmp_path / "a.png")
    pixels, changes = prepared(tmp_path / "a.png", background=background)
    assert only_colour(pixels) == colour
    assert changes[-1] == "alpha over {}, {}, {}".format(*background)


def test_opaque_alpha_is_not_in_the_ledger(tmp_path: Path) -> None:
    plain("RGBA", (200, 100, 0, 255)).save(tmp_path / "a.png")
    pixels, changes = prepared(tmp_path / "a.png")
    assert (only_colour(pixels), changes) == ((200, 100, 0), ["RGBA to RGB"])


@pytest.mark.parametrize("alphas", [0, bytes([0, 51])])
def test_palette_with_transparency(tmp_path: Path, alphas: int | bytes) -> None:
    picture = plain("P", 1)
    picture.paste(0, (0, 0, 48, 64))
    picture.putpalette([255, 0, 0, 0, 100, 200])
    picture.save(tmp_path / "a.png", transparency=alphas)
    pixels, changes = prepared(tmp_path / "a.png", background=(0, 0, 0))
    assert only_colour(pixels[:, :48]) == (0, 0, 0)
    # 51/255 is a fifth
    assert only_colour(pixels[:, 48:]) == ((0, 100, 200) if alphas == 0 else (0, 20, 40))
    assert changes == ["P to RGB", "alpha over 0, 0, 0"]


@pytest.mark.parametrize(
    ("mode", "low", "high"), [("L", 40, 200), ("RGB", (40, 40, 40), (200, 200, 200)), ("I;16", 40 * 257, 200 * 257)]
)
def test_one_transparent_colour(tmp_path: Path, mode: str, low: object, high: object) -> None:
    picture = plain(mode, low)
    picture.paste(high, (48, 0, 96, 64))  # type: ignore[arg-type]
    picture.save(tmp_path / "a.png", transparency=low)
    pixels, changes = prepared(tmp_path / "a.png", background=(9, 9, 9))
    assert (only_colour(pixels[:, :48]), only_colour(pixels[:, 48:])) == ((9, 9, 9), (200, 200, 200))
    assert changes[-1] == "alpha over 9, 9, 9"


@pytest.mark.parametrize(
    ("picture", "suffix", "colour", "expected_change"),
    [
        (plain("L", 77), "jpg", (77, 77, 77), ["L to RGB"]),
        (plain("1", 1), "png", (255, 255, 255), ["1 to L", "L to RGB"]),
        (palette((200, 100, 0)), "bmp", (200, 100, 0), ["P to RGB"]),
        (palette((200, 100, 0)), "gif", (200, 100, 0), ["P to RGB"]),
        # R = 255 * (1 - C) * (1 - K): 204; G = 204 * 127 / 255 = 101.6; B = 0
        (plain("CMYK", (0, 128, 255, 51)), "tif", (204, 102, 0), ["CMYK to RGB"]),
        (plain("CMYK", (0, 255, 255, 0)), "jpg", (255, 0, 0), ["CMYK to RGB"]),
        (plain("LAB", (255, 128, 128)), "tif", (255, 255, 255), ["LAB to RGB"]),
        (plain("YCbCr", (76, 85, 255)), "tif", (254, 0, 0), ["YCbCr to RGB"]),
    ],
)
def test_other_modes(
    tmp_path: Path, picture: Image.Image, suffix: str, colour: tuple[int, int, int], expected_change: list[str]
) -> None:
    picture.save(tmp_path / f"a.{suffix}")
    pixels, changes = prepared(tmp_path / f"a.{suffix}")
    assert np.abs(pixels.astype(int) - colour).max() <= 1
    assert changes == expected_change


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.zeros((HEIGHT, WIDTH), np.uint16)
    values[0, :7] = [128, 129, 257, 32896, 65406, 65407, 65535]
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    pixels, changes = prepared(tmp_path / f"a.{suffix}")
    assert pixels[0, :7, 0].tolist() == [0, 1, 1, 128, 254, 255, 255]  # v / 257, rounded
    assert (pixels[..., :1] == pixels).all()
    assert changes == ["16 bits scaled to 8", "L to RGB"]


@pytest.mark.parametrize(
    ("kind", "values", "expected", "expected_change"),
    [
        (np.int32, [0, 65535, 32896], [0, 255, 128], "I with white 65535 scaled to 8 bits"),
        (np.int32, [0, 255, 7], [0, 255, 7], "I with white 255 scaled to 8 bits"),
        (np.int32, [-1000, 1000, 0], [0, 255, 128], "I from -1000..1000 stretched to 8 bits"),
        (np.float32, [0.0, 1.0, 0.2], [0, 255, 51], "F with white 1 scaled to 8 bits"),
        (np.float32, [-3e38, 3e38, 0.0], [0, 255, 128], "F from -3e+38..3e+38 stretched to 8 bits"),
        (np.float32, [0.0, 300.0, np.nan], [0, 255, 0], "F from 0..300 stretched to 8 bits"),
    ],
)
def test_thirty_two_bits(
    tmp_path: Path, kind: type, values: list[float], expected: list[int], expected_change: str
) -> None:
    array = np.full((HEIGHT, WIDTH), values[0], kind)
    array[0, :3] = values
    Image.fromarray(array).save(tmp_path / "a.tif")
    pixels, changes = prepared(tmp_path / "a.tif")
    assert pixels[0, :3, 1].tolist() == expected
    assert changes[0] == expected_change


@pytest.mark.parametrize(
    ("picture", "colour"),
    [
        (plain("RGB", (200, 100, 0)), (100, 200, 0)),
        (plain("RGBA", (200, 100, 0, 51)), (224, 244, 204)),  # a fifth of it over white
        (palette((200, 100, 0)), (100, 200, 0)),
    ],
)
def test_a_colour_profile_is_converted(tmp_path: Path, picture: Image.Image, colour: tuple[int, int, int]) -> None:
    picture.save(tmp_path / "a.png", icc_profile=swapped_profile())
    pixels, changes = prepared(tmp_path / "a.png")
    assert np.abs(pixels.astype(int) - colour).max() <= 1
    assert "colour profile odd! built-in to sRGB" in changes


def test_srgb_profiles_change_nothing(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(noise()).save(tmp_path / "a.png", icc_profile=profile)
    pixels, changes = prepared(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels, noise())
    assert changes == []


def test_profiles_that_cannot_be_used(tmp_path: Path) -> None:
    plain("RGB", (200, 100, 0)).save(tmp_path / "a.png", icc_profile=b"no profile")
    pixels, changes = prepared(tmp_path / "a.png")
    assert (only_colour(pixels), changes) == ((200, 100, 0), ["broken colour profile ignored"])
    plain("CMYK", (0, 255, 255, 0)).save(tmp_path / "a.jpg", icc_profile=swapped_profile())
    pixels, changes = prepared(tmp_path / "a.jpg")
    assert changes == ["colour profile for RGB ignored: the picture is CMYK", "CMYK to RGB"]
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 1
    plain("L", 90).save(tmp_path / "b.png", icc_profile=swapped_profile())  # grey with a profile for RGB is common
    pixels, changes = prepared(tmp_path / "b.png")
    assert np.abs(pixels.astype(int) - 90).max() <= 1
    assert changes == ["colour profile odd! built-in to sRGB"]
