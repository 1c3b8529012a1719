"""What the ledger notes of a picture."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from pipeline.pictures import reading
from pipeline.pictures.preparing import prepare_picture, prepare_set
from tests.pictures.samples import noise, plain, prepared, row, settings


def test_a_picture_of_the_right_size_is_left_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png")
    image, entry = prepare_picture(tmp_path / "a.png", row(), settings())
    np.testing.assert_array_equal(np.asarray(image), noise())
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


def test_enlarging_is_in_the_ledger(tmp_path: Path) -> None:
    Image.fromarray(noise(32, 48)).save(tmp_path / "a.png")
    _, entry = prepare_picture(tmp_path / "a.png", row(), settings())
    assert (entry["scale"], entry["upscaled"]) == (2, True)
    smooth, changes = prepared(tmp_path / "a.png", resample="area")
    assert changes == ["bicubic, because area is for shrinking"]
    np.testing.assert_array_equal(smooth, prepared(tmp_path / "a.png", resample="bicubic")[0])


@pytest.mark.parametrize("part", ["_orientation", "_count_frames"])
def test_the_ledger_notes_what_could_not_be_read(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which damage Pillow refuses differs from release to release, so it is made to."""

    def fail(*_: object) -> None:
        raise SyntaxError("damaged")

    plain("RGB", (10, 20, 30)).save(tmp_path / "a.png")
    if part == "_orientation":
        monkeypatch.setattr(Image.Image, "getexif", fail)
        expected = "unreadable EXIF ignored, taken as upright"
    else:
        calls = iter([reading._open, fail])  # frames are counted by the second
        monkeypatch.setattr(reading, "_open", lambda file: next(calls)(file))
        expected = "frame 1; the others could not be counted"
    _, entry = prepare_picture(tmp_path / "a.png", row(), settings())
    assert expected in entry["done"]


def test_the_ledger_does_not_disturb_a_set_of_one(raw: Path, tmp_path: Path) -> None:
    (raw / "metadata.jsonl").write_text('{"file_name": "0 dawn.JPG", "text": "one"}\n')
    prepare_set(raw, tmp_path / "out", settings())
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train")
    assert loaded["text"] == ["one"]
