"""Memory by the number of pictures: what is kept of each is its name and digest, not its row, path or content."""

import gc
import json
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures.imagefolder import find_problems
from pipeline.pictures.preparing import prepare_set
from pipeline.sections import PrepareSection
from pipeline.state import content_digest

SETTINGS = PrepareSection(width=64, height=64, resample="area", background=(255, 255, 255), max_megapixels=1.0)
FEW, MANY = 100, 1100


def make_set(folder: Path, count: int) -> Path:
    """So many pictures, each of its own."""
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "one.bmp")
    content = (folder / "one.bmp").read_bytes()
    (folder / "one.bmp").unlink()
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for number in range(count):
            name = f"{number:07}.bmp"
            (folder / name).write_bytes(content[:-4] + number.to_bytes(4, "little"))
            metadata.write(json.dumps({"file_name": name, "text": f"a red hill {number}"}) + "\n")
    return folder


def check(folder: Path) -> None:
    # Twice: the second time knows all digests.
    for _ in range(2):
        assert not find_problems(folder, max_megapixels=1.0, workers=1, memory=folder.parent / "memory.txt")


def prepare(folder: Path) -> None:
    prepare_set(folder, folder.parent / "prepared", SETTINGS, workers=1)


def digest(folder: Path) -> None:
    assert content_digest(folder).endswith(".dir")


def peak(work: Callable[[], None]) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("work", "most"), [(check, 600), (prepare, 80), (digest, 200)])
def test_each_picture_more_takes_little_memory(work: Callable[[Path], None], most: int, tmp_path: Path) -> None:
    """Bytes a picture; of a row, its path and its line there were a thousand to seventeen hundred."""
    few, many = make_set(tmp_path / "few/raw", FEW), make_set(tmp_path / "many/raw", MANY)
    work(make_set(tmp_path / "first/raw", 60))  # what is imported and cached once
    slope = (peak(partial(work, many)) - peak(partial(work, few))) / (MANY - FEW)
    assert slope < most, slope
