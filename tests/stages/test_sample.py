from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.project import HEIGHT, WIDTH, edit, with_values

CELL = (WIDTH, HEIGHT)


def cells(sheet: Path, rows: int, columns: int) -> list[list[NDArray[np.uint8]]]:
    """The pictures of a grid, found by its regular spacing from the lower right corner."""
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB"))
    (wide, high), margin, gap = CELL, 12, 6
    top = pixels.shape[0] - margin + gap - rows * (high + gap)
    left = pixels.shape[1] - margin + gap - columns * (wide + gap)
    return [
        [pixels[top + r * (high + gap) :, left + c * (wide + gap) :][:high, :wide] for c in range(columns)]
        for r in range(rows)
    ]


def test_the_grid_has_a_row_for_each_caption_and_seed_and_a_column_for_each_weight(ran: Path) -> None:
    shown = cells(ran / "reports/samples/hills.png", rows=4, columns=3)  # 2 captions, 2 seeds; picture, 0, 1
    for number, name in enumerate(("red hill", "red hill", "großer See", "großer See")):
        with Image.open(ran / f"data/prepared/hills/{name}.png") as keyframe:
            assert np.array_equal(shown[number][0], np.asarray(keyframe))
    base_alone, with_adapter = ([row[column] for row in shown] for column in (1, 2))
    assert all(not np.array_equal(a, b) for a, b in zip(base_alone, with_adapter, strict=True)), "weight 1 does nothing"
    assert not np.array_equal(base_alone[0], base_alone[1]), "both seeds give one picture"
    assert not np.array_equal(base_alone[0], base_alone[2]), "the caption does nothing"


def test_a_set_as_one_shows_as_many_captions_as_asked_for(ran: Path) -> None:
    shown = cells(ran / "reports/samples/dots.png", rows=2, columns=3)
    with Image.open(ran / "data/prepared/dots/d0.png") as keyframe:
        assert np.array_equal(shown[0][0], np.asarray(keyframe)) and np.array_equal(shown[1][0], np.asarray(keyframe))


def test_weight_0_is_the_base_alone_whatever_the_adapter(
    ran: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from pipeline.stages import sample

    for folder in ("data/prepared/hills", "models/adapters/hills"):
        shutil.copytree(ran / folder, project / folder)
    first, second = (project / f"models/adapters/hills/{name}.safetensors" for name in ("red hill", "großer See"))
    shutil.copy(second, first)
    edit(project / "params.yaml", lambda text: with_values(text, {"sample.captions": 1}))
    sample.run("hills")
    now = cells(project / "reports/samples/hills.png", rows=2, columns=3)
    before = cells(ran / "reports/samples/hills.png", rows=4, columns=3)
    for row in range(2):
        assert np.array_equal(now[row][1], before[row][1]) and not np.array_equal(now[row][2], before[row][2])
