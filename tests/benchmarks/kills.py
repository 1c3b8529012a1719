"""Trainings killed at random against undisturbed ones: `python -m tests.benchmarks.kills [--kills 20] [--processes 2]`.

Each run trains a tiny project's set and is killed (SIGKILL) after random times until it has taken its share of kills:
all of its processes at once, or, where there are several, by chance only the first one, which started the others, or
one of these. Then it is let finish. Says whether every output has the bytes of the undisturbed training.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.project import ROOT, contents, edit, make_project, with_values
from tests.tiny import build_tiny

OUTPUTS = ("models/adapters", "reports/curves")


def start(folder: Path, key: str) -> subprocess.Popen[bytes]:
    """`morphline train`."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", key],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill(process: subprocess.Popen[bytes], rng: random.Random) -> None:
    """SIGKILL to some or all of a training's processes."""
    first = psutil.Process(process.pid)
    others = [child for child in first.children(recursive=True) if "pipeline" in child.cmdline()]
    choices = [[first, *others]] if not others else [[first, *others], [first], [rng.choice(others)]]
    for victim in rng.choice(choices):
        with suppress(psutil.NoSuchProcess):
            victim.kill()


def steps_done(folder: Path) -> int:
    """Checkpoint files written so far, by their time stamps: how far a training has got."""
    return max((path.stat().st_mtime_ns for path in folder.glob(".work/adapters/*/checkpoint*")), default=0)


def disturbed(folder: Path, key: str, kills: int, rng: random.Random) -> int:
    """Train with up to `kills` kills, each at a random moment after new checkpoints; how many hit."""
    hit = 0
    for _ in range(20 * kills + 20):  # after a lost first process the others may still be saving, and hold the lock
        process, before = start(folder, key), steps_done(folder)
        wait = rng.uniform(0, 0.6)
        while hit < kills and process.poll() is None and steps_done(folder) == before:
            time.sleep(0.002)
        if hit < kills and process.poll() is None:
            time.sleep(wait)
            if process.poll() is None:
                kill(process, rng)
                hit += 1
        if process.wait() == 0:
            return hit
        if process.returncode > 0:
            time.sleep(0.5)
    raise RuntimeError(f"the training in {folder} does not come to its end")


def main() -> None:
    """Kill, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--set", default="hills", choices=("hills", "dots"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        build_tiny().save_pretrained(top / "base")
        (top / "calm").mkdir()
        calm = make_project(top / "calm", top / "base", f"sqlite:///{top}/mlflow.db")
        values = {
            "machine.checkpoint_every": 1,
            "machine.processes": arguments.processes,
            "train.steps": arguments.steps,
        }
        edit(calm / "params.yaml", lambda text: with_values(text, values))
        edit(calm / "params.yaml", lambda text: text.replace("train: {steps: 4}", "train: {}"))
        subprocess.run([sys.executable, "-m", "pipeline", "prepare", arguments.set], cwd=calm, check=True,
                       env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
        fresh = top / "fresh"
        shutil.copytree(calm, fresh)
        assert start(calm, arguments.set).wait() == 0
        same = total = 0
        for run in range(arguments.runs):
            folder = top / f"run{run}"
            shutil.copytree(fresh, folder)
            share = arguments.kills // arguments.runs + (run < arguments.kills % arguments.runs)
            total += disturbed(folder, arguments.set, share, rng)
            equal = all(contents(folder / output) == contents(calm / output) for output in OUTPUTS)
            same += equal
            print(f"run {run + 1}: killed {share} times; {'the same bytes' if equal else 'OTHER BYTES'}", flush=True)
        print(f"{total} kills in {arguments.runs} runs of {arguments.set} with {arguments.processes} process(es): "
              f"{same} of {arguments.runs} as undisturbed")  # fmt: skip


if __name__ == "__main__":
    main()
