"""Whether a file holds as many pixels as its header claims. Pillow leaves rows black, or grey, that a stream which ends
in good order does not have."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image

from pipeline.pictures.jpeg import lacks_blocks

_PIECE = 1 << 20
_MOST_BYTES = 16  # of a pixel of a JPEG, which has three or four numbers; a GIF needs fewer
_TILE_PART = b"\xff\x90"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's colour type
# Adam7: where each pass begins and how far its pixels lie apart, in x and y (PNG specification, 8.2).
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def lacks_pixels(file: BinaryIO, image: Image.Image) -> bool:
    """Whether an opened picture's file is too short for its size.

    A JPEG spends a bit at least on each 8x8 block: what has less lacks pixels for certain. That is all that is known
    of JPEGs within a TIFF; PNG, GIF, JPEG 2000 and plain JPEG are looked at to their end.
    """
    if image.format == "PNG":
        return _png_lacks(file)
    if image.format == "GIF":
        return _gif_lacks(file, image.width * image.height)
    pixels, length = image.width * image.height, file.seek(0, 2)
    if image.format == "JPEG2000":
        file.seek(0)
        return _jpeg2000_lacks(file.read(_PIECE + _MOST_BYTES * pixels))
    if image.format in ("JPEG", "MPO"):
        file.seek(0)
        content = file.read(_PIECE + _MOST_BYTES * pixels)
        return 8 * length < pixels // 64 or lacks_blocks(content, image)
    return image.info.get("compression") == "jpeg" and 8 * length < pixels // 64


def _gif_lacks(file: BinaryIO, pixels: int) -> bool:
    """Whether the first frame needs more than its own blocks of data: Pillow goes on with whatever follows them."""
    file.seek(0)
    with Image.open(file, formats=["GIF"]) as image:
        place = image.tile[0].offset
    file.seek(0)
    content = file.read(place + _PIECE + _MOST_BYTES * pixels)
    while place < len(content) and content[place]:
        place += 1 + content[place]
    try:
        with Image.open(io.BytesIO(content[:place] + b"\0;"), formats=["GIF"]) as alone:
            alone.load()
    except OSError:
        return True
    return False


def _jpeg2000_lacks(content: bytes) -> bool:
    """Whether there is no part of a tile, or one of them goes on beyond the end (ITU-T T.800, A.4.2): of a stream that
    ends where its first tile would begin, Pillow makes a black picture."""
    place = content.find(b"\xff\x4f\xff\x51") + 2  # the main header: segments of a marker and a length
    while content[place : place + 2] not in (_TILE_PART, b"") and place + 4 <= len(content):
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    parts = 0
    while content[place : place + 2] == _TILE_PART:
        length = int.from_bytes(content[place + 6 : place + 10], "big")  # 0: up to the end
        if place + max(length, 12) > len(content):
            return True
        parts, place = parts + 1, place + (length or len(content))
    return not parts


def _png_lacks(file: BinaryIO) -> bool:
    missing, stream = 0, zlib.decompressobj()
    for kind, size in _chunks(file):
        if kind == b"IHDR":
            missing = _raw_bytes(file.read(size))
        while kind == b"IDAT" and size > 0 and missing > 0 and (piece := file.read(min(size, _PIECE))):
            size -= len(piece)
            while piece and missing > 0 and not stream.eof:
                missing -= len(stream.decompress(piece, _PIECE))
                piece = stream.unconsumed_tail
    return missing > 0


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and length of each chunk of a PNG, with the file at the chunk's content."""
    place = file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        yield kind, length
        place = file.seek(place + length + 12)


def _raw_bytes(header: bytes) -> int:
    """How many bytes all rows have, each with one for its filter."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header[:13])
    bits = depth * _CHANNELS.get(colour, 1)
    total = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-max(width - left, 0) // across), -(-max(height - top, 0) // down)
        total += rows * (1 + -(-columns * bits // 8)) if columns else 0
    return total
