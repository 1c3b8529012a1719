"""Picture files that cannot be trusted, and the first frame of others, upright."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures.imagefolder import find_problems
from tests.pictures.samples import (
    bomb,
    messages,
    noise,
    only_colour,
    only_message,
    plain,
    prepared,
    write_picture,
    write_rows,
)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif", "avif", "jp2", "ppm"])
def test_truncated_pictures(folder: Path, suffix: str) -> None:
    path = folder / f"c.{suffix}"
    write_picture(path)
    write_rows(folder, *({"file_name": name, "text": "x"} for name in ("a.jpg", "b.png", path.name)))
    assert messages(folder) == []
    whole = path.read_bytes()
    for share in (0.9, 0.5, 0.1):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "corrupt" in only_message(folder, f"metadata.jsonl:3: 'c.{suffix}': ")


def test_files_that_are_not_pictures(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"")
    only_message(folder, "metadata.jsonl:2: 'b.png': the file is empty. ")
    (folder / "b.png").write_text("<svg></svg>")
    only_message(folder, "metadata.jsonl:2: 'b.png': corrupt, or not a picture of a known format (JPEG, PNG")
    (folder / "b.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # Pillow would run Ghostscript
    only_message(folder, "metadata.jsonl:2: 'b.png': corrupt, or not a picture")
    (folder / "b.png").unlink()
    (folder / "b.png").mkdir()
    only_message(folder, "metadata.jsonl:2: 'b.png' is not a file. ")
    (folder / "b.png").rmdir()
    os.mkfifo(folder / "b.png")  # reading it would wait for ever
    only_message(folder, "metadata.jsonl:2: 'b.png' is not a file. ")


@pytest.mark.parametrize("side", [1001, 12_000, 60_000])  # over ours; over Pillow's warning; over Pillow's error
def test_a_decompression_bomb_is_refused_by_its_header(
    folder: Path, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)
    (folder / "b.png").write_bytes(bomb(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = only_message(folder, "metadata.jsonl:2: 'b.png': ")
    assert f"{side * side / 1e6:.4g} megapixels, more than the 1 allowed" in found
    assert "prepare.max_megapixels" in found
    assert Image.MAX_IMAGE_PIXELS == 89_478_485  # the rest of the process keeps its own limit


def test_a_limit_above_pillows_own(folder: Path) -> None:
    (folder / "b.png").write_bytes(bomb(20_000, 20_000))
    problems = find_problems(folder, max_megapixels=500)
    assert ["truncated" in problem.found for problem in problems] == [True]  # it was let through to the decoder


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = noise()
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
    pixels, changes = prepared(path)
    np.testing.assert_array_equal(pixels, upright)
    assert changes == ([] if orientation == 1 else [f"turned upright (EXIF orientation {orientation})"])


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"\xff" * 40, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_broken_exif_is_ignored(tmp_path: Path, exif: bytes) -> None:
    plain("RGB", (10, 20, 30)).save(tmp_path / "a.png", exif=exif)
    assert only_colour(prepared(tmp_path / "a.png")[0]) == (10, 20, 30)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_the_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [plain("RGB", colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    pixels, changes = prepared(tmp_path / f"a.{suffix}")
    assert only_colour(pixels) == (255, 0, 0)
    assert changes[0] == "frame 1 of 3"
