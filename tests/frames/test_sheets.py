"""Strips and grids show the right pictures, whole."""

import numpy as np
import pytest
from PIL import Image

from pipeline.frames.clips import Frame
from pipeline.frames.sheets import grid, strip

ORANGE = (232, 89, 12)


def _plain(values: range, size: int = 64) -> list[Frame]:
    """Frames of one grey each, and that grey is the frame's number times 8."""
    return [np.full((size, size, 3), value * 8, np.uint8) for value in values]


def _greys(sheet: Image.Image, height: int, size: int = 64) -> list[int]:
    """The numbers of the plain frames along a line of the sheet, each only if it is `size` pixels wide."""
    line = np.asarray(sheet)[height].astype(int)
    numbers, start = [], 0
    for x in range(1, len(line) + 1):
        if x == len(line) or (line[x] != line[start]).any():
            if x - start == size and len(set(line[start].tolist())) == 1 and line[start, 0] < 255:
                numbers.append(int(line[start, 0]) // 8)
            start = x
    return numbers


def _rows(sheet: Image.Image) -> list[list[int]]:
    """The plain frames of each row of a sheet."""
    rows: list[list[int]] = []
    for height in range(sheet.height):
        greys = _greys(sheet, height)
        if greys and (not rows or greys != rows[-1]):
            rows.append(greys)
    return rows


@pytest.mark.parametrize(
    ("count", "keyframes", "expected"),
    [
        (9, [0, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (17, [0, 8, 16], [0, 2, 4, 6, 8, 10, 12, 14, 16]),
        (25, [0, 8, 16, 24], [0, 3, 5, 8, 11, 13, 16, 19, 21, 24]),
        (25, [], [0, 3, 6, 9, 12, 15, 18, 21, 24]),
        (3, [0, 2], [0, 1, 2]),
        (1, [0], [0]),
    ],
)
def test_a_strip_shows_keyframes_and_even_steps_between(count: int, keyframes: list[int], expected: list[int]) -> None:
    assert _rows(strip([("", _plain(range(count)))], keyframes=keyframes)) == [expected]


def test_many_keyframes_still_fit() -> None:
    (row,) = _rows(strip([("", _plain(range(31)))], keyframes=range(31)))
    assert (len(row), row[0], row[-1]) == (9, 0, 30)


def test_rows_stand_one_under_the_other_with_their_labels() -> None:
    frames = _plain(range(5))
    sheet = strip([("Morph", frames), ("Cross-fade", frames[::-1])], keyframes=[0, 4])
    assert _rows(sheet) == [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]
    blank = strip([("", frames), ("", frames[::-1])], keyframes=[0, 4])
    assert blank.size == sheet.size
    assert np.asarray(blank).tobytes() != np.asarray(sheet).tobytes()


def test_keyframes_have_a_border_that_hides_nothing() -> None:
    sheet = strip([("", _plain(range(5)))], keyframes=[0, 4])
    orange = (np.asarray(sheet) == ORANGE).all(axis=-1)
    assert orange.sum() == 2 * (68 * 68 - 64 * 64)  # two pixels around each of two pictures
    assert not (np.asarray(strip([("", _plain(range(5)))])) == ORANGE).all(axis=-1).any()


def test_large_frames_are_shrunk_and_small_ones_left() -> None:
    assert strip([("", _plain(range(1), 640))], cell=100).width < 140
    assert _rows(strip([("", _plain(range(1), 64))], cell=100)) == [[0]]


def test_a_grid_keeps_rows_and_columns() -> None:
    frames = _plain(range(6))
    sheet = grid([frames[:3], frames[3:]], ["a caption of many words that must be wrapped", "é 山"], ["0", "0.5", "1"])
    assert _rows(sheet) == [[0, 1, 2], [3, 4, 5]]
    assert (
        sheet.tobytes()
        == grid(
            [frames[:3], frames[3:]], ["a caption of many words that must be wrapped", "é 山"], ["0", "0.5", "1"]
        ).tobytes()
    )


def test_long_labels_stay_out_of_the_pictures() -> None:
    frames = _plain(range(2))
    plain = np.asarray(grid([frames], ["x"], ["", ""]))
    long = np.asarray(grid([frames], ["caption " * 200 + "W" * 500], ["", ""]))
    assert (plain[:, 162:] == long[:, 162:]).all()
    above = np.asarray(grid([frames], [""], ["W" * 100, ""]))
    assert (above[:, 78:82] == 255).all()  # the gap between the columns


def test_sheets_without_pictures_or_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="one label for each"):
        grid([_plain(range(2))], ["a"], ["only one"])
    with pytest.raises(ValueError, match="at least one"):
        grid([], [], [])
