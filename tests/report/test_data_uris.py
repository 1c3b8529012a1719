import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.report.data_uris import data_uri, thumbnail_uri


def opened(uri: str) -> Image.Image:
    kind, _, content = uri.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == f"data:image/{str(image.format).lower()}"
    return image


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    rows, columns = np.mgrid[:60, :90]
    pixels = np.stack([rows * 4, columns * 2, 255 - rows * 4], 2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "slope.png")
    return tmp_path / "slope.png"


def test_a_file_is_embedded_byte_for_byte(picture: Path) -> None:
    assert base64.b64decode(data_uri(picture).partition(",")[2]) == picture.read_bytes()


def test_a_smaller_one_looks_the_same_and_never_grows(picture: Path) -> None:
    for max_side, size in ((200, (90, 60)), (45, (45, 30))):
        found = opened(thumbnail_uri(picture, max_side))
        assert found.size == size and found.format == "WEBP"
        with Image.open(picture) as image:
            expected = np.asarray(image.resize(size, Image.Resampling.LANCZOS), dtype=float)
        assert np.abs(np.asarray(found.convert("RGB"), dtype=float) - expected).mean() < 4


def test_the_same_picture_gives_the_same_bytes(picture: Path) -> None:
    assert thumbnail_uri(picture, 64) == thumbnail_uri(picture, 64)
