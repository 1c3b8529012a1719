"""Raw pictures and sets for the tests of this room, and what the room makes of them."""

import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from pipeline.pictures.imagefolder import find_problems
from pipeline.pictures.preparing import prepare_picture
from pipeline.pictures.rows import Row
from pipeline.sections import PrepareSection

WIDTH, HEIGHT = 96, 64


def write_picture(path: Path, size: tuple[int, int] = (64, 48)) -> None:
    noise = random.Random(0).randbytes(size[0] * size[1] * 3)  # so that the file is long enough to cut
    Image.frombytes("RGB", size, noise).save(path)


def write_rows(folder: Path, *rows: object) -> None:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def messages(folder: Path, caption_length: Callable[[str], tuple[int, int]] | None = None) -> list[str]:
    """The problems of a set, with file names instead of paths."""
    problems = find_problems(folder, max_megapixels=1, caption_length=caption_length)
    return [str(problem).replace(f"{folder}/", "") for problem in problems]


def only_message(folder: Path, start: str) -> str:
    """The one problem of a set, which must begin like this."""
    found = messages(folder)
    assert len(found) == 1, found
    assert found[0].startswith(start), found[0]
    return found[0]


def bomb(width: int, height: int) -> bytes:
    """A PNG of 100 bytes whose header declares so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def settings(**changes: object) -> PrepareSection:
    values = {
        "width": WIDTH,
        "height": HEIGHT,
        "resample": "lanczos",
        "background": (255, 255, 255),
        "max_megapixels": 1.0,
    }
    return PrepareSection.model_validate(values | changes)


def row(name: str = "a.png", **more: object) -> Row:
    return Row.model_validate({"file_name": name, "text": "a caption", **more})


def prepared(path: Path, **changes: object) -> tuple[np.ndarray, list[str]]:
    """The pixels of a picture and what the ledger says was done to it."""
    image, entry = prepare_picture(path, row(path.name), settings(**changes))
    assert (image.mode, image.size, image.info) == ("RGB", (WIDTH, HEIGHT), {})
    return np.asarray(image), entry["done"]


def plain(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (WIDTH, HEIGHT), colour)  # type: ignore[arg-type]


def palette(colour: tuple[int, int, int]) -> Image.Image:
    picture = plain("P", 1)
    picture.putpalette([0, 0, 0, *colour])
    return picture


def noise(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def only_colour(pixels: np.ndarray) -> tuple[int, ...]:
    (colour,) = np.unique(pixels.reshape(-1, 3), axis=0)
    return tuple(int(value) for value in colour)


def swapped_profile() -> bytes:
    """sRGB with its red and green primaries exchanged, and another name."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = data.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    return data.replace("sRGB".encode("utf-16-be"), "odd!".encode("utf-16-be"))


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
