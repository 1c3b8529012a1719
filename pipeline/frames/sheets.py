"""Many pictures in one: strips of frames, and grids of samples, with labels."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from importlib.resources import files
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from pipeline.frames.tensors import Frame

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_PAPER, _INK, _ACCENT = "#ffffff", "#333333", "#e8590c"
_MARGIN, _GAP, _BORDER = 12, 6, 2
_LABEL_WIDTH = 150


def strip(
    rows: Sequence[tuple[str, Sequence[Frame]]], *, keyframes: Sequence[int] = (), columns: int = 9, cell: int = 192
) -> Image.Image:
    """Labelled rows of frames, about `columns` from each, that show whole morphs at a glance.

    The keyframes (indices into each row's frames) are always among the selected frames, with a thin border, and the
    others are evenly spread between them; rows of one length show the same frames. Frames larger than `cell`
    pixels on the longer side are shrunk to it.
    """
    font = _font(15, [label for label, _ in rows])
    selected = [(label, *_select(len(frames), keyframes, columns), frames) for label, frames in rows]
    pictures = [[_shrunk(frames[index], cell) for index in indices] for _, indices, _, frames in selected]
    wide, high = _largest(pictures)
    label_height = _line_height(font) + 4
    row_height = label_height + high + 2 * _GAP
    sheet, draw = _sheet(
        2 * _MARGIN + max(map(len, pictures)) * (wide + _GAP) - _GAP, 2 * _MARGIN + len(rows) * row_height - 2 * _GAP
    )
    for number, ((label, _, marked, _), row) in enumerate(zip(selected, pictures, strict=True)):
        top = _MARGIN + number * row_height
        draw.text((_MARGIN, top), _truncated(label, font, sheet.width - 2 * _MARGIN), fill=_INK, font=font)
        for column, picture in enumerate(row):
            corner = (_MARGIN + column * (wide + _GAP), top + label_height)
            sheet.paste(picture, corner)
            if marked[column]:
                _draw_border(draw, corner, picture.size)
    return sheet


def grid(
    rows: Sequence[Sequence[Frame]], row_labels: Sequence[str], column_labels: Sequence[str], *, cell: int = 192
) -> Image.Image:
    """Rows of pictures with a label to the left of each row, wrapped over several lines, and one above each column.

    Pictures larger than `cell` pixels on the longer side are shrunk to it.
    """
    if len(rows) != len(row_labels) or any(len(row) != len(column_labels) for row in rows):
        raise ValueError("a grid needs one label for each row and each column")
    font = _font(14, [*row_labels, *column_labels])
    pictures = [[_shrunk(frame, cell) for frame in row] for row in rows]
    wide, high = _largest(pictures)
    left = _MARGIN + (_LABEL_WIDTH + _GAP if any(row_labels) else 0)
    top = _MARGIN + (_line_height(font) + 4 if any(column_labels) else 0)
    sheet, draw = _sheet(
        left + len(column_labels) * (wide + _GAP) - _GAP + _MARGIN, top + len(rows) * (high + _GAP) - _GAP + _MARGIN
    )
    for column, label in enumerate(column_labels):
        centre = left + column * (wide + _GAP) + wide / 2
        draw.text((centre, _MARGIN), _truncated(label, font, wide), fill=_INK, font=font, anchor="ma")
    for number, (label, row) in enumerate(zip(row_labels, pictures, strict=True)):
        y = top + number * (high + _GAP)
        lines = _wrapped(label, font, _LABEL_WIDTH, max(1, high // (_line_height(font) + 2)))
        text_top = y + (high - len(lines) * (_line_height(font) + 2)) / 2
        for line, text in enumerate(lines):
            draw.text((_MARGIN, text_top + line * (_line_height(font) + 2)), text, fill=_INK, font=font)
        for column, picture in enumerate(row):
            sheet.paste(picture, (left + column * (wide + _GAP), y))
    return sheet


def _select(count: int, keyframes: Sequence[int], columns: int) -> tuple[list[int], list[bool]]:
    """Indices of about `columns` of `count` frames, and which of them are keyframes."""
    stops = sorted({index for index in keyframes if 0 <= index < count})
    ends = sorted({0, count - 1, *stops})
    segments = len(ends) - 1
    if segments + 1 > columns + 2:  # more keyframes than columns: an even selection of them
        ends = [ends[round(i * segments / (columns - 1))] for i in range(columns)]
        segments = len(ends) - 1
    steps = max(1, round((columns - 1) / max(segments, 1)))
    indices = [round(a + (b - a) * i / steps) for a, b in pairwise(ends) for i in range(steps)]
    indices = sorted({*indices, ends[-1]})
    return indices, [index in stops for index in indices]


def _shrunk(frame: Frame, cell: int) -> Image.Image:
    picture = Image.fromarray(frame)
    scale = min(1, cell / max(picture.size))
    if scale == 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _draw_border(draw: ImageDraw.ImageDraw, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """A border around a picture, in the gap, so that it hides none of it."""
    (x, y), (width, height) = corner, size
    outer = (x - _BORDER, y - _BORDER, x + width + _BORDER - 1, y + height + _BORDER - 1)
    draw.rectangle(outer, outline=_ACCENT, width=_BORDER)


def _sheet(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (width, height), _PAPER)
    return sheet, ImageDraw.Draw(sheet)


def _largest(pictures: Sequence[Sequence[Image.Image]]) -> tuple[int, int]:
    sizes = [picture.size for row in pictures for picture in row]
    if not sizes:
        raise ValueError("a sheet needs at least one picture")
    return max(width for width, _ in sizes), max(height for _, height in sizes)


def _font(size: int, labels: Iterable[str]) -> Font:
    """Pillow's own font, or DejaVu, which matplotlib brings, for letters that Pillow's font lacks."""
    if all(label.isascii() for label in labels):
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(files("matplotlib") / "mpl-data/fonts/ttf/DejaVuSans.ttf"), size - 1)


def _line_height(font: Font) -> int:
    return int(font.getbbox("Ág")[3])


def _truncated(text: str, font: Font, width: int) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    # Bisected, because measuring a caption of thousands of letters at each length takes long.
    fits = bisect_left(range(len(text)), True, key=lambda length: font.getlength(text[:length] + "...") > width) - 1
    return text[: max(fits, 0)].rstrip() + "..."


def _wrapped(text: str, font: Font, width: int, most_lines: int) -> list[str]:
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < most_lines - 1:
        taken = 1
        while taken < len(words) and font.getlength(" ".join(words[: taken + 1])) <= width:
            taken += 1
        lines.append(_truncated(" ".join(words[:taken]), font, width))
        words = words[taken:]
    return [*lines, _truncated(" ".join(words), font, width)] if words else lines
