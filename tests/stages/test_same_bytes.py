"""The table of docs/scale.md: where batches, packs and processes change no byte, and how far rounding goes elsewhere.

Each stage gets the same inputs whatever the params: adapters and morphs are those of one process with the defaults.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.processes.launched import launch
from tests.project import MORPHS, ROOT, contents, edit, with_entries, with_values
from tests.stages import runs

PAGE = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
STAGES = {"adapters": "train", "samples": "sample", "frames": "morph", "figures": "evaluate"}  # by columns
VALUES: dict[str, object] = {
    "machine.reuse": "false", "morph.frames": 4, "morph.pacing": "perceptual", "morph.pacing_spare": 3,
    "morph.without_adapters": "false", "sample.captions": 1, "sample.seeds": 3,
}  # fmt: skip
WITH_ATTENTION = MORPHS.replace("morph: {}", "morph: {attention: [up], guidance: 2.0}")
CUT = {"machine.batch": 8, "machine.pack": 1}
OTHERWISE = {"machine.workers": 2, "machine.checkpoint_every": 1}
# The lines of the table by their first cells: what is compared, as params and processes on either side, and the set.
Side = tuple[str, int]
LINES: dict[str, tuple[Side, Side, str]] = {
    "nothing, or `workers`, `checkpoint_every`, `reuse`": (("default", 1), ("otherwise", 1), "hills"),
    "`batch`, `pack`": (("default", 1), ("cut", 1), "hills"),
    "processes, with `batch` set and `pack: 1`": (("cut", 1), ("cut", 2), "hills"),
    "processes, with `batch: null` and `pack: null`": (("default", 1), ("default", 2), "hills"),
    "processes, of a set with `adapter: set`": (("default", 1), ("default", 2), "dots"),
}
PARAMS: dict[str, Mapping[str, object]] = {"default": {}, "cut": CUT, "otherwise": OTHERWISE}


def cells() -> dict[str, dict[str, str]]:
    """The table as it stands in the page: line to column to cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"(?m)^\|.*\|$", PAGE)]
    first = next(number for number, row in enumerate(rows) if row[1:] == list(STAGES))
    return {row[0]: dict(zip(STAGES, row[1:], strict=True)) for row in rows[first + 2 : first + 2 + len(LINES)]}


@pytest.fixture(scope="module")
def made(ran: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Side, Path]:
    """A project for each side, with the outputs of every stage."""
    top = tmp_path_factory.mktemp("same-bytes")
    default = top / "default-1"
    shutil.copytree(ran, default, ignore=shutil.ignore_patterns(".work"))
    edit(default / "params.yaml", lambda text: with_values(with_entries(text, "morphs", WITH_ATTENTION), VALUES))
    for task in ("train:hills", "train:dots", "sample:hills", "morph:hills", "evaluate:hills"):
        runs.run(f"{task}:{default}")
    folders = {("default", 1): default}
    for side in {side for *sides, _ in LINES.values() for side in sides} - set(folders):
        folder = folders[side] = top / "-".join(map(str, side))
        shutil.copytree(default, folder, ignore=shutil.ignore_patterns(".work"))
        if PARAMS[side[0]]:
            edit(folder / "params.yaml", lambda text, side=side: with_values(text, PARAMS[side[0]]))
    tasks: dict[int, list[str]] = {1: [], 2: []}
    for (_, count), folder in list(folders.items())[1:]:
        # Backwards, so that each finds what the default has made.
        tasks[count] += [f"{stage}:hills:{folder}" for stage in ("evaluate", "morph", "sample", "train")]
    tasks[2].append(f"train:dots:{folders['default', 2]}")
    runs.run(*tasks[1])
    done = launch(ROOT / "tests/stages/runs.py", *tasks[2], timeout=600)
    assert done.returncode == 0, done.stderr
    return folders


def outputs(project: Path, column: str, key: str) -> dict[str, bytes]:
    """The files of a column."""
    if column == "adapters":
        return contents(project / "models/adapters" / key)
    if column == "frames":
        return contents(project / "data/morphs" / key)
    found = contents(project / "reports")
    folders = ("samples",) if column == "samples" else ("metrics", "curves/morphs", "smoothness")
    return {name: data for name, data in found.items() if name.startswith(folders) and Path(name).stem == key}


def rounding(first: Path, second: Path, column: str, key: str) -> float:
    """How far two results lie apart, in the unit of the table's column."""
    if column == "adapters":
        folders = [side / "models/adapters" / key for side in (first, second)]
        names = [path.name for path in folders[0].glob("*.safetensors")]
        return max(apart(*(load_file(folder / name) for folder in folders)) for name in names)
    if column == "figures":
        one, two = (
            json.loads((side / f"reports/metrics/{key}.json").read_text(encoding="utf-8"))["morph"]
            for side in (first, second)
        )
        return max(abs(two[name] / one[name] - 1) for name in one if one[name])
    if column == "frames":
        names = [f"data/morphs/{key}/frames/{path.name}" for path in (first / f"data/morphs/{key}/frames").iterdir()]
    else:
        names = [f"reports/samples/{key}.png"]
    return max(float(np.abs(pixels(first / name) - pixels(second / name)).max()) for name in names)


def apart(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> float:
    """Distance of two adapters over the length of one."""
    first, second = (torch.cat([tensors[name].flatten() for name in sorted(tensors)]) for tensors in (one, two))
    return float((first - second).norm() / first.norm())


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_the_page_has_these_lines() -> None:
    assert list(cells()) == list(LINES)


@pytest.mark.parametrize("column", STAGES)
@pytest.mark.parametrize("line", LINES)
def test_the_table_is_what_is_measured(made: dict[Side, Path], line: str, column: str) -> None:
    first, second, key = LINES[line]
    cell = cells()[line][column]
    if key == "dots" and column != "adapters":
        assert cell == "as above"
        return
    one, two = (outputs(made[side], column, key) for side in (first, second))
    assert one and one.keys() == two.keys()
    if cell == "same bytes":
        assert one == two
    else:
        assert rounding(made[first], made[second], column, key) <= float(cell.removeprefix("≤ ").split()[0])
