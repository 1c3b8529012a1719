"""Processor time and peak memory by the pictures of a set: `python -m tests.benchmarks.pictures --pictures 100 10000`.

Each stage is the real one in a process of its own, on small pictures and the tests' tiny base: `check` (twice: the
second finds every picture known), `prepare`, and `train` of one adapter for all, of a single step, which is mostly the
encoding. Time should grow with the pictures, memory should not. `--keep FOLDER` leaves the project there.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from PIL import Image

from tests.benchmarks.shapes import stage_usage
from tests.project import tiny_params
from tests.tiny import build_tiny, section

SIDE = 64
SETS = "  many: {adapter: set, prepare: {}, train: {}, sample: {}}\n"
SETTINGS = {
    "prepare.width": SIDE,
    "prepare.height": SIDE,
    "train.steps": 1,
    "train.batch": 1,
    "machine.workers": 2,
    "tracking.pictures_every": "",
    "tracking.system_every": "",
}
STAGES = {"check": ["check"], "check again": ["check"], "prepare": ["prepare", "many"], "train": ["train", "many"]}


def make_project(folder: Path, pictures: int) -> Path:
    """A project of one set of so many small pictures, each of its own."""
    build_tiny().save_pretrained(folder / "base")
    raw = folder / "data/raw/many"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    with (raw / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for number in range(pictures):
            name = f"{number:07}.jpg"
            colours = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(raw / name)
            metadata.write(json.dumps({"file_name": name, "text": f"a red hill {number}"}) + "\n")
    base = {"base.source": "base", "base.revision": section(folder / "base").revision}
    text = tiny_params({**base, **SETTINGS}, sets=SETS, morphs="")
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    return folder


def run_stage(arguments: Sequence[str], folder: Path) -> tuple[float, float]:
    """Processor seconds and peak memory in MiB, of the largest process, of a stage in a process of its own."""
    usage = stage_usage(arguments, folder)
    return usage.seconds, usage.peak / 2**20


def main() -> None:
    """Measure each number of pictures and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    print(f"| processor s, peak MiB | {' | '.join(arguments.stages)} |")
    print("|---" * (len(arguments.stages) + 1) + "|", flush=True)
    for pictures in arguments.pictures:
        kept = arguments.keep and arguments.keep / str(pictures)
        with nullcontext(kept) if kept else tempfile.TemporaryDirectory() as folder:
            project = Path(folder)
            if not (project / "params.yaml").exists():
                project.mkdir(parents=True, exist_ok=True)
                make_project(project, pictures)
            cells = []
            for stage in arguments.stages:
                seconds, peak = run_stage(STAGES[stage], project)
                cells.append(f"{seconds:.0f} s, {peak:.0f}")
            print(f"| {pictures:,} pictures | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
