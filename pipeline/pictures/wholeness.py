"""Whether a file holds as many pixels as its header claims. Pillow leaves rows black, or grey, that a stream which ends
in good order does not have."""

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image

_PIECE = 1 << 20
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's colour type
# Adam7: where each pass begins and how far its pixels lie apart, in x and y (PNG specification, 8.2).
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def lacks_pixels(file: BinaryIO, image: Image.Image) -> bool:
    """Whether an opened picture's file is too short for its size.

    Exact for PNG. A JPEG spends a bit at least on each 8x8 block, a GIF three on each string of at most 4096 pixels:
    what has less lacks pixels for certain.
    """
    pixels = image.width * image.height
    if image.format == "PNG":
        return _png_lacks(file)
    bits = 8 * file.seek(0, 2)
    if image.format == "JPEG" or image.info.get("compression") == "jpeg":
        return bits < pixels // 64
    return image.format == "GIF" and bits < 3 * pixels // 4096


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
