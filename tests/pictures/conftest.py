"""Raw sets for the tests of this room."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.pictures.samples import noise, write_picture, write_rows

NAMES = ["dawn.JPG", "two words.png", "été 山.webp", "a.b#c%20[1].gif", "quote'\".bmp", "day.tif"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A faultless set of two pictures."""
    folder = tmp_path / "raw"
    folder.mkdir()
    write_picture(folder / "a.jpg")
    write_picture(folder / "b.png")
    write_rows(folder, {"file_name": "a.jpg", "text": "one"}, {"file_name": "b.png", "text": "two"})
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A set of 18 pictures with awkward names."""
    folder = tmp_path / "raw"
    folder.mkdir()
    lines = []
    for number in range(18):
        name = f"{number} {NAMES[number % len(NAMES)]}"
        Image.fromarray(noise(70, 120, number)).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f'"{number}" é\u2028\n; rm', "extra": number}))
    (folder / "metadata.jsonl").write_text("\n".join(reversed(lines)), encoding="utf-8")
    return folder
