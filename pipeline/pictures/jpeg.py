"""Whether a JPEG holds data for all of its blocks. libjpeg fills in grey, without a word, what a scan does not have.

A decoder stops after the last block, whatever lies between that and the end of the scan. So filling is put there: where
it changes the picture, blocks were missing and the decoder took the filling for them. Nothing less than decoding tells
where the data ends, since codes are of any number of bits.
"""

import io
import random
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image, ImageChops

_MARKER = re.compile(rb"\xff+([^\x00\xff])")  # begins a segment; any number of 0xFF may come before it
_ENDS_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_START, _END, _SCAN, _INTERVAL = 0xD8, 0xD9, 0xDA, 0xDD
_HUFFMAN, _OTHER_FRAMES = (0xC0, 0xC1, 0xC2), (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_KEPT = (0xE0, 0xEE)  # of the segments of applications, those that say what the colours are (JFIF, Adobe)

_NOISE = bytes(random.Random(0).choices(range(1, 255), k=1024))
# Of two that differ in every bit one at least decodes to other blocks than none; where no more than the last bits of
# the very last block are missing, it may differ by less than a level of 255.
_FILLINGS = (_NOISE, bytes(255 - byte for byte in _NOISE))


class _Segment(NamedTuple):
    """A marker segment (T.81, B.1): its kind, its bytes from the marker on, and after a scan's header its data."""

    kind: int
    head: bytes
    data: bytes = b""


def lacks_blocks(content: bytes, image: Image.Image) -> bool:
    """Whether data is missing at the end of any scan. content: of the file; image: what it was decoded to."""
    segments = list(_segments(content))
    kinds = {segment.kind for segment in segments}
    if kinds & set(_OTHER_FRAMES) or not kinds & set(_HUFFMAN):
        return False  # arithmetic codes look ahead beyond their end: any filling would change them
    if _lacks_restarts(segments) or (0xC2 in kinds and _lacks_scans(segments)):
        return True
    return any(_differ(image, _filled(segments, filling)) for filling in _FILLINGS)


def _segments(content: bytes) -> Iterator[_Segment]:
    place = 0
    while found := _MARKER.search(content, place):
        kind, place = found[1][0], found.end()
        if kind == _END:
            return
        if kind in (_START, 0x01) or _RESTART.match(found[0][-2:]):
            continue
        length = int.from_bytes(content[place : place + 2])
        head = content[place - 2 : place + length]
        place += length
        if kind == _SCAN:
            end = _ENDS_SCAN.search(content, place)
            stop = end.start() if end else len(content)
            yield _Segment(kind, head, content[place:stop])
            place = stop
        elif not (0xE0 <= kind <= 0xEF or kind == 0xFE) or kind in _KEPT:
            yield _Segment(kind, head)


def _filled(segments: list[_Segment], filling: bytes) -> bytes:
    parts = [segment.head + segment.data + (filling if segment.kind == _SCAN else b"") for segment in segments]
    return b"".join([bytes((0xFF, _START)), *parts, bytes((0xFF, _END))])


def _differ(image: Image.Image, content: bytes) -> bool:
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as other:
        other.load()
        return ImageChops.difference(image, other).getbbox() is not None


def _lacks_restarts(segments: list[_Segment]) -> bool:
    """Whether a scan has fewer restart markers than intervals end in it (T.81, B.2.4.4, A.2): beyond one that is
    missing no filling is read."""
    interval, frame = 0, b""
    for kind, head, data in segments:
        if kind == _INTERVAL:
            (interval,) = struct.unpack(">H", head[4:6])
        elif kind in _HUFFMAN:
            frame = head
        elif kind == _SCAN and interval and len(_RESTART.findall(data)) < (_units(frame, head) - 1) // interval:
            return True
    return False


def _lacks_scans(segments: list[_Segment]) -> bool:
    """Whether a progressive picture ends before the scan with the last bit of every coefficient (T.81, G.1.1.1)."""
    lacking: set[tuple[int, int]] = set()
    for kind, head, _ in segments:
        if kind in _HUFFMAN:
            lacking = {(head[10 + 3 * one], place) for one in range(head[9]) for place in range(64)}
        elif kind == _SCAN:
            first, last, bits = head[-3:]
            if bits & 15 == 0:
                named = head[5 : 5 + 2 * head[4] : 2]
                lacking -= {(one, place) for one in named for place in range(first, last + 1)}
    return bool(lacking)


def _units(frame: bytes, scan: bytes) -> int:
    """How many units of blocks a scan codes one after the other (T.81, A.2)."""
    height, width, count = struct.unpack(">HHB", frame[5:10])
    sampling = {frame[10 + 3 * one]: divmod(frame[11 + 3 * one], 16) for one in range(count)}
    most = [max(one[way] for one in sampling.values()) for way in (0, 1)]
    across, down = (1, 1) if scan[4] > 1 else sampling[scan[5]]
    if scan[4] == 1:  # the blocks of this component alone, without those that only fill up
        return -(-width * across // (8 * most[0])) * -(-height * down // (8 * most[1]))
    return -(-width // (8 * most[0])) * -(-height // (8 * most[1]))
