"""A tiny project, as a user would have one: the shipped params.yaml with smaller values, raw pictures, a base."""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
SHIPPED = (ROOT / "params.yaml").read_text(encoding="utf-8")

SETS = """\
  hills: {adapter: image, prepare: {}, train: {}, sample: {}}
  dots: {adapter: set, prepare: {}, train: {steps: 4}, sample: {captions: 1}}
"""
MORPHS = """\
  hills: {set: hills, style: none, keyframes: [red hill.png, "großer See.jpg", blue.png], morph: {}}
  dots: {set: dots, style: none, keyframes: [d3.png, d1.png], morph: {frames: 4}}
"""
EDITS = """\
  hills: {set: hills, adapters: {dots: 1.0, hills/blue: -0.5}, edit: {guidance: 2.0}}
"""
# The second caption would break a page or a shell that takes it as its own.
HILLS = {
    "red hill.png": "a red hill",
    "großer See.jpg": 'a <b>blue</b> lake; "so" & $(false)',
    "blue.png": "a blue hill",
}
DOTS = {f"d{number}.png": "a red lake" for number in range(4)}
WIDTH, HEIGHT = 64, 72  # of prepared pictures
SMALL = {
    "prepare.width": WIDTH,
    "prepare.height": HEIGHT,
    "train.steps": 6,
    "train.batch": 2,
    "train.learning_rate": 0.05,
    "train.b_rate": 1.0,
    "train.schedule": "constant",
    "train.rank": 2,
    "sample.captions": 2,
    "sample.seeds": 2,
    "sample.weights": "[0, 1]",
    "sample.steps": 2,
    "morph.frames": 3,
    "morph.steps": 2,
    "morph.inversion_steps": 2,
    "morph.adain": "true",
    "morph.pacing": "linear",
    "morph.fps": 8.0,
    "edit.steps": 2,
    "edit.scales": "[0, 1]",
    "machine.device": "cpu",
    "machine.workers": 1,
}


def with_values(text: str, values: Mapping[str, object]) -> str:
    """A params.yaml with other values for keys such as `train.steps`; every other byte stays."""
    left = dict(values)
    section = ""
    lines = []
    in_list = False
    for line in text.splitlines(keepends=True):
        if in_list and line.startswith("  - "):
            continue  # of a list that another value takes the place of
        in_list = False
        if found := re.match(r"(\w+):", line):
            section = found[1]
        elif (found := re.match(r"  ([\w-]+):(?: |$)", line)) and f"{section}.{found[1]}" in left:
            in_list = line.endswith(":\n")
            line = f"  {found[1]}: {left.pop(f'{section}.{found[1]}')}\n"
        lines.append(line)
    assert not left, f"params.yaml has no {sorted(left)}"
    return "".join(lines)


def with_entries(text: str, section: str, entries: str) -> str:
    """A params.yaml with other entries under `sets`, `morphs` or `edits`, or none; every other byte stays."""
    whole = f"{section}:\n{entries}" if entries else f"{section}: {{}}\n"
    changed, count = re.subn(rf"(?m)^{section}:\n(?:  .*\n)+", lambda match: whole, text)
    assert count == 1
    return changed


def tiny_params(values: Mapping[str, object], sets: str = SETS, morphs: str = MORPHS, edits: str | None = None) -> str:
    """The shipped params.yaml, comments and all, with values small enough for a test.

    edits: None for those of SETS, and for none where the sets are others.
    """
    if edits is None:
        edits = EDITS if sets == SETS else ""
    text = SHIPPED
    for section, entries in (("sets", sets), ("morphs", morphs), ("edits", edits)):
        text = with_entries(text, section, entries)
    return with_values(text, {**SMALL, **values})


def paint(path: Path, seed: int, size: tuple[int, int] = (90, 70)) -> None:
    """A soft picture of its own for each seed."""
    colours = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(path)


def paint_set(folder: Path, captions: Mapping[str, str], seed: int = 0) -> None:
    """A raw set: a picture for each name, and metadata.jsonl."""
    folder.mkdir(parents=True)
    for number, name in enumerate(captions):
        paint(folder / name, seed + number, (90 + 7 * number, 70))
    write_rows(folder, [{"file_name": name, "text": text} for name, text in captions.items()])


def write_rows(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


def make_project(folder: Path, base: Path, uri: str, values: Mapping[str, object] = {}) -> Path:
    """A project with two sets, two morphs and, in `bases/tiny`, a base that is pinned as a user would pin it."""
    from tests.tiny import section

    shutil.copytree(base, folder / "bases/tiny")
    paint_set(folder / "data/raw/hills", HILLS)
    paint_set(folder / "data/raw/dots", DOTS, seed=10)
    pinned = {"base.source": "bases/tiny", "base.revision": section(base).revision}
    text = tiny_params({**pinned, "tracking.uri": uri, **values})
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    return folder


def make_clone(folder: Path, base: Path, params: str, sets: Mapping[str, Mapping[str, str]]) -> Path:
    """A clone of this repository as DVC sees it, with a tiny base in place of the pocket and tiny pictures.

    sets: by key the captions of the pictures.
    """
    shutil.copytree(base, folder / "models/pocket")
    (folder / "models/pocket/made.json").write_text("{}\n")
    for name in (".gitignore", ".dvcignore", ".dvc/.gitignore", ".dvc/config", "dvc.yaml", "models/dvc.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for path in ROOT.glob("*/**/.gitkeep"):
        (folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.relative_to(ROOT))
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    for number, (key, captions) in enumerate(sets.items()):
        paint_set(folder / "data/raw" / key, captions, seed=10 * number)
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    return folder


def edit(path: Path, change: Callable[[str], str]) -> None:
    """Rewrite a text file; the change must change it."""
    before = path.read_text(encoding="utf-8")
    after = change(before)
    assert after != before
    path.write_text(after, encoding="utf-8")


def contents(folder: Path, *without: str) -> dict[str, bytes]:
    """Every file below a folder by its relative path, but for those in the folders `without`."""
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        name.as_posix(): (folder / name).read_bytes()
        for name in names
        if not any(name.is_relative_to(part) for part in without)
    }
