"""Raw pictures of every kind become what a hand-worked number says."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image, ImageCms

from pipeline.errors import UserError
from pipeline.params import PrepareSection
from pipeline.pictures import preparing
from pipeline.pictures import reading as pictures
from pipeline.pictures.preparing import LEDGER, crop_window, prepare_picture, prepare_set
from pipeline.pictures.rows import Row

WIDTH, HEIGHT = 96, 64


def _settings(**changes: object) -> PrepareSection:
    values = {
        "width": WIDTH,
        "height": HEIGHT,
        "resample": "lanczos",
        "background": (255, 255, 255),
        "max_megapixels": 1.0,
    }
    return PrepareSection.model_validate(values | changes)


def _row(name: str = "a.png", **more: object) -> Row:
    return Row.model_validate({"file_name": name, "text": "a caption", **more})


def _prepared(path: Path, **changes: object) -> tuple[np.ndarray, list[str]]:
    """The pixels of a picture and what the ledger says was done to it."""
    image, entry = prepare_picture(path, _row(path.name), _settings(**changes))
    assert (image.mode, image.size, image.info) == ("RGB", (WIDTH, HEIGHT), {})
    return np.asarray(image), entry["done"]


def _plain(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (WIDTH, HEIGHT), colour)  # type: ignore[arg-type]


def _palette(colour: tuple[int, int, int]) -> Image.Image:
    picture = _plain("P", 1)
    picture.putpalette([0, 0, 0, *colour])
    return picture


def _noise(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _only_colour(pixels: np.ndarray) -> tuple[int, ...]:
    (colour,) = np.unique(pixels.reshape(-1, 3), axis=0)
    return tuple(int(value) for value in colour)


def test_a_picture_of_the_right_size_is_left_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(_noise()).save(tmp_path / "a.png")
    image, entry = prepare_picture(tmp_path / "a.png", _row(), _settings())
    np.testing.assert_array_equal(np.asarray(image), _noise())
    assert entry == {
        "file_name": "a.png",
        "source": "a.png",
        "sha256": hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest(),
        "format": "PNG",
        "mode": "RGB",
        "size": [96, 64],
        "done": [],
        "crop": [0, 0, 96, 64],
        "scale": 1,
        "upscaled": False,
    }


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = _noise()
    # The EXIF standard: where the stored first row and first column are seen.
    stored = {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.transpose(1, 0, 2),  # left, top
        6: np.rot90(upright, 1),  # right, top
        7: upright[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
        8: np.rot90(upright, -1),  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, lossless=True)
    pixels, done = _prepared(path)
    np.testing.assert_array_equal(pixels, upright)
    assert done == ([] if orientation == 1 else [f"turned upright (EXIF orientation {orientation})"])


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"\xff" * 40, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_broken_exif_is_ignored(tmp_path: Path, exif: bytes) -> None:
    _plain("RGB", (10, 20, 30)).save(tmp_path / "a.png", exif=exif)
    assert _only_colour(_prepared(tmp_path / "a.png")[0]) == (10, 20, 30)


@pytest.mark.parametrize(
    ("picture", "background", "colour"),
    [
        # 64/255 of the picture and 191/255 of the background
        (_plain("RGBA", (200, 100, 0, 64)), (255, 255, 255), (241, 216, 191)),
        (_plain("LA", (100, 128)), (0, 0, 255), (50, 50, 177)),
        (_plain("RGBA", (200, 100, 0, 0)), (1, 2, 3), (1, 2, 3)),
    ],
)
def test_alpha_shows_the_background(
    tmp_path: Path, picture: Image.Image, background: tuple[int, int, int], colour: tuple[int, int, int]
) -> None:
    picture.save(tmp_path / "a.png")
    pixels, done = _prepared(tmp_path / "a.png", background=background)
    assert _only_colour(pixels) == colour
    assert done[-1] == "alpha over {}, {}, {}".format(*background)


def test_opaque_alpha_is_not_called_alpha(tmp_path: Path) -> None:
    _plain("RGBA", (200, 100, 0, 255)).save(tmp_path / "a.png")
    pixels, done = _prepared(tmp_path / "a.png")
    assert (_only_colour(pixels), done) == ((200, 100, 0), ["RGBA to RGB"])


@pytest.mark.parametrize("alphas", [0, bytes([0, 51])])
def test_palette_with_transparency(tmp_path: Path, alphas: int | bytes) -> None:
    picture = _plain("P", 1)
    picture.paste(0, (0, 0, 48, 64))
    picture.putpalette([255, 0, 0, 0, 100, 200])
    picture.save(tmp_path / "a.png", transparency=alphas)
    pixels, done = _prepared(tmp_path / "a.png", background=(0, 0, 0))
    assert _only_colour(pixels[:, :48]) == (0, 0, 0)
    # 51/255 is a fifth
    assert _only_colour(pixels[:, 48:]) == ((0, 100, 200) if alphas == 0 else (0, 20, 40))
    assert done == ["P to RGB", "alpha over 0, 0, 0"]


@pytest.mark.parametrize(
    ("mode", "low", "high"), [("L", 40, 200), ("RGB", (40, 40, 40), (200, 200, 200)), ("I;16", 40 * 257, 200 * 257)]
)
def test_one_transparent_colour(tmp_path: Path, mode: str, low: object, high: object) -> None:
    picture = _plain(mode, low)
    picture.paste(high, (48, 0, 96, 64))  # type: ignore[arg-type]
    picture.save(tmp_path / "a.png", transparency=low)
    pixels, done = _prepared(tmp_path / "a.png", background=(9, 9, 9))
    assert (_only_colour(pixels[:, :48]), _only_colour(pixels[:, 48:])) == ((9, 9, 9), (200, 200, 200))
    assert done[-1] == "alpha over 9, 9, 9"


@pytest.mark.parametrize(
    ("picture", "suffix", "colour", "said"),
    [
        (_plain("L", 77), "jpg", (77, 77, 77), ["L to RGB"]),
        (_plain("1", 1), "png", (255, 255, 255), ["1 to L", "L to RGB"]),
        (_palette((200, 100, 0)), "bmp", (200, 100, 0), ["P to RGB"]),
        (_palette((200, 100, 0)), "gif", (200, 100, 0), ["P to RGB"]),
        # R = 255 * (1 - C) * (1 - K): 204; G = 204 * 127 / 255 = 101.6; B = 0
        (_plain("CMYK", (0, 128, 255, 51)), "tif", (204, 102, 0), ["CMYK to RGB"]),
        (_plain("CMYK", (0, 255, 255, 0)), "jpg", (255, 0, 0), ["CMYK to RGB"]),
        (_plain("LAB", (255, 128, 128)), "tif", (255, 255, 255), ["LAB to RGB"]),
        (_plain("YCbCr", (76, 85, 255)), "tif", (254, 0, 0), ["YCbCr to RGB"]),
    ],
)
def test_other_modes(
    tmp_path: Path, picture: Image.Image, suffix: str, colour: tuple[int, int, int], said: list[str]
) -> None:
    picture.save(tmp_path / f"a.{suffix}")
    pixels, done = _prepared(tmp_path / f"a.{suffix}")
    assert np.abs(pixels.astype(int) - colour).max() <= 1
    assert done == said


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.zeros((HEIGHT, WIDTH), np.uint16)
    values[0, :7] = [128, 129, 257, 32896, 65406, 65407, 65535]
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    pixels, done = _prepared(tmp_path / f"a.{suffix}")
    assert pixels[0, :7, 0].tolist() == [0, 1, 1, 128, 254, 255, 255]  # v / 257, rounded
    assert (pixels[..., :1] == pixels).all()
    assert done == ["16 bits scaled to 8", "L to RGB"]


@pytest.mark.parametrize(
    ("kind", "values", "expected", "said"),
    [
        (np.int32, [0, 65535, 32896], [0, 255, 128], "I with white 65535 scaled to 8 bits"),
        (np.int32, [0, 255, 7], [0, 255, 7], "I with white 255 scaled to 8 bits"),
        (np.int32, [-1000, 1000, 0], [0, 255, 128], "I from -1000..1000 stretched to 8 bits"),
        (np.float32, [0.0, 1.0, 0.2], [0, 255, 51], "F with white 1 scaled to 8 bits"),
        (np.float32, [-3e38, 3e38, 0.0], [0, 255, 128], "F from -3e+38..3e+38 stretched to 8 bits"),
        (np.float32, [0.0, 300.0, np.nan], [0, 255, 0], "F from 0..300 stretched to 8 bits"),
    ],
)
def test_thirty_two_bits(tmp_path: Path, kind: type, values: list[float], expected: list[int], said: str) -> None:
    array = np.full((HEIGHT, WIDTH), values[0], kind)
    array[0, :3] = values
    Image.fromarray(array).save(tmp_path / "a.tif")
    pixels, done = _prepared(tmp_path / "a.tif")
    assert pixels[0, :3, 1].tolist() == expected
    assert done[0] == said


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_the_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [_plain("RGB", colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    pixels, done = _prepared(tmp_path / f"a.{suffix}")
    assert _only_colour(pixels) == (255, 0, 0)
    assert done[0] == "frame 1 of 3"


def _swapped_profile() -> bytes:
    """sRGB with its red and green primaries exchanged, and another name."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = data.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    return data.replace("sRGB".encode("utf-16-be"), "odd!".encode("utf-16-be"))


@pytest.mark.parametrize(
    ("picture", "colour"),
    [
        (_plain("RGB", (200, 100, 0)), (100, 200, 0)),
        (_plain("RGBA", (200, 100, 0, 51)), (224, 244, 204)),  # a fifth of it over white
        (_palette((200, 100, 0)), (100, 200, 0)),
    ],
)
def test_a_colour_profile_is_converted(tmp_path: Path, picture: Image.Image, colour: tuple[int, int, int]) -> None:
    picture.save(tmp_path / "a.png", icc_profile=_swapped_profile())
    pixels, done = _prepared(tmp_path / "a.png")
    assert np.abs(pixels.astype(int) - colour).max() <= 1
    assert "colour profile odd! built-in to sRGB" in done


def test_srgb_profiles_change_nothing(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(_noise()).save(tmp_path / "a.png", icc_profile=profile)
    pixels, done = _prepared(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels, _noise())
    assert done == []


def test_profiles_that_cannot_be_used(tmp_path: Path) -> None:
    _plain("RGB", (200, 100, 0)).save(tmp_path / "a.png", icc_profile=b"no profile")
    pixels, done = _prepared(tmp_path / "a.png")
    assert (_only_colour(pixels), done) == ((200, 100, 0), ["broken colour profile ignored"])
    _plain("CMYK", (0, 255, 255, 0)).save(tmp_path / "a.jpg", icc_profile=_swapped_profile())
    pixels, done = _prepared(tmp_path / "a.jpg")
    assert done == ["colour profile for RGB ignored: the picture is CMYK", "CMYK to RGB"]
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 1
    _plain("L", 90).save(tmp_path / "b.png", icc_profile=_swapped_profile())  # grey with a profile for RGB is common
    pixels, done = _prepared(tmp_path / "b.png")
    assert np.abs(pixels.astype(int) - 90).max() <= 1
    assert done == ["colour profile odd! built-in to sRGB"]


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
    assert crop_window(size, target, _row(**more)) == pytest.approx(window)


def test_windows_never_leave_the_picture() -> None:
    chance = np.random.default_rng(3)
    for number in range(500):
        size = (int(chance.integers(1, 500)), int(chance.integers(1, 500)))
        target = (8 * int(chance.integers(8, 65)), 8 * int(chance.integers(8, 65)))
        edges = np.sort(chance.random((2, 2)), axis=0).ravel().tolist()
        more = [{}, {"focus": chance.random(2).tolist()}, {"box": edges}][int(chance.integers(3))]
        left, top, right, bottom = crop_window(size, target, _row(**more))
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
    image, entry = prepare_picture(tmp_path / "a.png", _row(focus=[0.5, 0]), _settings())
    assert _only_colour(np.asarray(image)) == (255, 0, 0)
    assert (entry["size"], entry["crop"]) == ([96, 192], [0, 0, 96, 64])


def test_cropping_alone_keeps_every_pixel(tmp_path: Path) -> None:
    Image.fromarray(_noise(HEIGHT, 131)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(_prepared(tmp_path / "a.png")[0], _noise(HEIGHT, 131)[:, 18:114])


def test_the_window_is_not_rounded_to_whole_pixels(tmp_path: Path) -> None:
    rows = np.arange(9) * 28.0
    picture = np.broadcast_to(rows[:, None, None], (9, 13, 3)).astype(np.uint8)
    Image.fromarray(np.ascontiguousarray(picture)).save(tmp_path / "a.png")
    pixels, _ = _prepared(tmp_path / "a.png", resample="bicubic")
    # 13 pixels wide is 8 2/3 high at 3:2, from the top: pixel y shows the height (y + 1/2) * 8 2/3 / 64
    heights = (np.arange(HEIGHT) + 0.5) * (26 / 3) / HEIGHT - 0.5
    expected = np.interp(heights, np.arange(9), rows)
    assert np.abs(pixels[14:50, 48, 0] - expected[14:50]).max() < 2


def test_area_is_the_plain_average(tmp_path: Path) -> None:
    source = _noise(2 * HEIGHT, 2 * WIDTH)
    Image.fromarray(source).save(tmp_path / "a.png")
    average = source.reshape(HEIGHT, 2, WIDTH, 2, 3).mean(axis=(1, 3))
    pixels, _ = _prepared(tmp_path / "a.png", resample="area")
    assert np.abs(pixels - average).max() <= 1  # Pillow rounds twice
    for other in ("lanczos", "bicubic"):
        assert np.abs(_prepared(tmp_path / "a.png", resample=other)[0] - average).max() > 2


def test_enlarging_is_said(tmp_path: Path) -> None:
    Image.fromarray(_noise(32, 48)).save(tmp_path / "a.png")
    _, entry = prepare_picture(tmp_path / "a.png", _row(), _settings())
    assert (entry["scale"], entry["upscaled"]) == (2, True)
    smooth, done = _prepared(tmp_path / "a.png", resample="area")
    assert done == ["bicubic, because area is for shrinking"]
    np.testing.assert_array_equal(smooth, _prepared(tmp_path / "a.png", resample="bicubic")[0])


def test_a_picture_that_cannot_be_read_is_a_users_mistake(tmp_path: Path) -> None:
    Image.fromarray(_noise()).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: 0\.006144 megapixels, more than the 0\.006 allowed"):
        prepare_picture(tmp_path / "a.png", _row(), _settings(max_megapixels=0.006))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"a\.png: corrupt or truncated"):
        prepare_picture(tmp_path / "a.png", _row(), _settings())


NAMES = ["dawn.JPG", "two words.png", "été 山.webp", "a.b#c%20[1].gif", "quote'\".bmp", "day.tif"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A set of 18 pictures with awkward names."""
    folder = tmp_path / "raw"
    folder.mkdir()
    lines = []
    for number in range(18):
        name = f"{number} {NAMES[number % len(NAMES)]}"
        Image.fromarray(_noise(70, 120, number)).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f'"{number}" é\u2028\n; rm', "extra": number}))
    (folder / "metadata.jsonl").write_text("\n".join(reversed(lines)), encoding="utf-8")
    return folder


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_prepared_set_is_an_imagefolder(raw: Path, tmp_path: Path) -> None:
    prepare_set(raw, tmp_path / "deep" / "out", _settings(), workers=1)
    folder = tmp_path / "deep" / "out"
    names = [json.loads(line)["file_name"] for line in (raw / "metadata.jsonl").read_text().split("\n")]
    ledger = [json.loads(line) for line in (folder / LEDGER).read_text().split("\n")[:-1]]
    assert [entry["source"] for entry in ledger] == names
    assert set(_files(folder)) == {*(entry["file_name"] for entry in ledger), "metadata.jsonl", LEDGER}
    loaded = load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"), split="train")
    assert loaded.column_names == ["image", "text"]
    assert loaded["text"] == [f'"{number}" é\u2028\n; rm' for number in reversed(range(18))]
    for entry, row in zip(ledger, loaded, strict=True):
        image, expected = prepare_picture(raw / entry["source"], _row(entry["source"]), _settings())
        assert entry == expected
        assert (row["image"].mode, row["image"].size) == ("RGB", (WIDTH, HEIGHT))
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(image))


def test_the_ledger_does_not_disturb_a_set_of_one(raw: Path, tmp_path: Path) -> None:
    (raw / "metadata.jsonl").write_text('{"file_name": "0 dawn.JPG", "text": "one"}\n')
    prepare_set(raw, tmp_path / "out", _settings())
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train")
    assert loaded["text"] == ["one"]


def test_pngs_hold_nothing_but_pixels(raw: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    profile = _swapped_profile()
    Image.fromarray(_noise()).save(raw / "0 dawn.JPG", exif=exif, icc_profile=profile, dpi=(300, 300), comment=b"c")
    (raw / "metadata.jsonl").write_text('{"file_name": "0 dawn.JPG", "text": "one"}\n')
    prepare_set(raw, tmp_path / "out", _settings())
    data = (tmp_path / "out" / "0 dawn.png").read_bytes()
    chunks, at = [], 8
    while at < len(data):
        chunks.append(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}


def test_the_same_bytes_whatever_the_workers(raw: Path, tmp_path: Path) -> None:
    prepare_set(raw, tmp_path / "out", _settings(), workers=1)
    alone = _files(tmp_path / "out")
    prepare_set(raw, tmp_path / "out", _settings(), workers=2)
    assert _files(tmp_path / "out") == alone
    assert len(alone) == 20


def test_a_failure_leaves_the_old_set(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_set(raw, tmp_path / "out", _settings(), workers=1)
    before = _files(tmp_path / "out")
    (raw / "2 été 山.webp").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"2 été 山\.webp: corrupt"):
        prepare_set(raw, tmp_path / "out", _settings(width=64), workers=1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "prepare_picture", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_set(raw, tmp_path / "out", _settings(width=64), workers=1)
    assert _files(tmp_path / "out") == before
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "out"}


@pytest.mark.parametrize("part", ["_orientation", "_count_frames"])
def test_the_ledger_says_what_could_not_be_read(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which damage Pillow stumbles over differs from release to release, so it is made to."""

    def stumble(*_: object) -> None:
        raise SyntaxError("damaged")

    _plain("RGB", (10, 20, 30)).save(tmp_path / "a.png")
    if part == "_orientation":
        monkeypatch.setattr(Image.Image, "getexif", stumble)
        expected = "unreadable EXIF ignored, taken as upright"
    else:
        looks = iter([pictures._open, stumble])  # the second look is the one that counts
        monkeypatch.setattr(pictures, "_open", lambda file: next(looks)(file))
        expected = "frame 1; the others could not be counted"
    _, entry = prepare_picture(tmp_path / "a.png", _row(), _settings())
    assert expected in entry["done"]
