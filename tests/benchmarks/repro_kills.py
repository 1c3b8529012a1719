"""Whole runs of the pipeline killed at random against an undisturbed one: `python -m tests.benchmarks.repro_kills`.

A tiny project's `dvc repro` gets a SIGKILL at a random moment, is started again, is killed again, and so on: its stage,
DVC alone (which leaves the stage running, while the next `dvc repro` begins), or both. The kills are spread over a few
whole runs, each from nothing, which are let finish after their share. Says whether every output and dvc.lock have the
bytes of the undisturbed run. `--kills 20 --runs 3 --seed 0`.
"""

import argparse
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from tests.project import HILLS, contents, make_clone, tiny_params
from tests.tiny import build_tiny

MADE = ("data/prepared", "data/morphs", "models/adapters", "reports")
KINDS = ("stage", "dvc", "both")
SETS = "  hills: {adapter: image, prepare: {}, train: {}, sample: {}}\n"
MORPHS = "  hills: {set: hills, style: none, keyframes: [red hill.png, blue.png], morph: {}}\n"
TRIES = 200


def start(project: Path, log: Path) -> subprocess.Popen[bytes]:
    """`dvc repro`, with the `morphline` of the project's own code."""
    binary = project.parent / "bin"
    environment = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1",
                   "PATH": os.pathsep.join([str(binary), os.environ["PATH"]])}  # fmt: skip
    with log.open("ab") as said:
        return subprocess.Popen([sys.executable, "-m", "dvc", "repro"], cwd=project, env=environment,
                                stdout=said, stderr=said)  # fmt: skip


def stages(process: psutil.Process) -> list[psutil.Process]:
    """What DVC has started, shell and all."""
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def kill(process: subprocess.Popen[bytes], kind: str) -> bool:
    """SIGKILL to a part of a run; whether there was something of that kind."""
    first = psutil.Process(process.pid)
    below = stages(first)
    if kind != "dvc" and not below:
        return False
    victims = {"stage": below, "dvc": [first], "both": [first, *below]}[kind]
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    return True


def run(project: Path, kills: int, seconds: float, rng: random.Random) -> Counter[str]:
    """Run until the end, with up to so many kills, spread over the seconds that it takes; which kinds hit."""
    hit: Counter[str] = Counter()
    for number in range(TRIES):
        process, kind = start(project, project.parent / "log.txt"), rng.choice(KINDS)
        due = hit.total() < kills
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, 2 * seconds / (kills + 1)) if due else None)
        while due and process.poll() is None:
            if kill(process, kind):
                hit[kind] += 1
                print(f"try {number + 1}: {kind} killed", flush=True)
                break
            time.sleep(0.02)  # between two stages there is none to kill
        code = process.wait()
        if code == 0 and not left(project):
            return hit
        if code > 0:
            time.sleep(1)  # the stage that a killed DVC has left still holds its lock
    raise RuntimeError(f"no end after {TRIES} tries: see {project.parent / 'log.txt'}")


def left(project: Path) -> list[psutil.Process]:
    """Stages that still run without their DVC."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd() == str(project.resolve()) and process.pid != os.getpid():
                found.append(process)
    return found


def main() -> None:
    """Kill, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3, help="whole runs over which the kills are spread")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        top = Path(place).resolve()
        build_tiny().save_pretrained(top / "base")
        (top / "bin").mkdir()
        script = top / "bin/morphline"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@"\n')
        script.chmod(0o755)
        values = {"train.steps": 60, "sample.captions": 1, "sample.seeds": 1, "machine.checkpoint_every": 1}
        params = tiny_params({**values, "tracking.uri": f"sqlite:///{top}/mlflow.db"}, sets=SETS, morphs=MORPHS)
        captions = {name: HILLS[name] for name in ("red hill.png", "blue.png")}
        calm = make_clone(top / "calm", top / "base", params, {"hills": captions})
        subprocess.run(["git", "init", "-q"], cwd=calm, check=True)
        fresh = Path(shutil.copytree(calm, top / "fresh"))
        started = time.monotonic()
        run(calm, 0, 0, rng)
        seconds = time.monotonic() - started
        print(f"undisturbed: {seconds:.0f} s", flush=True)
        hit: Counter[str] = Counter()
        runs, same, stale = 0, True, 0
        while hit.total() < arguments.kills:  # a run may end before its share of them
            share = math.ceil((arguments.kills - hit.total()) / max(arguments.runs - runs, 1))
            disturbed = Path(shutil.copytree(fresh, top / f"disturbed-{runs}"))
            hit += run(disturbed, share, seconds, rng)
            runs += 1
            same &= all(contents(disturbed / folder) == contents(calm / folder) for folder in MADE)
            same &= (disturbed / "dvc.lock").read_bytes() == (calm / "dvc.lock").read_bytes()
            stale += sum(1 for folder in MADE for _ in (disturbed / folder).rglob("*.partial*"))
        kinds = ", ".join(f"{hit[kind]} of {kind}" for kind in KINDS)
        print(f"{hit.total()} kills ({kinds}) in {runs} whole runs and {time.monotonic() - started:.0f} s: "
              f"{'the same bytes' if same else 'OTHER BYTES'}, {stale} unfinished files left")  # fmt: skip
        sys.exit(0 if same and not stale else 1)


if __name__ == "__main__":
    main()
