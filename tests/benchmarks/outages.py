"""A real MLflow server killed at random under four trainings: `python -m tests.benchmarks.outages [--kills 10]`.

Four tiny trainings run at once, with pictures on the way, while the server is killed (SIGKILL) and started again at
random moments. Then `morphline track sync` brings what is left. Says whether the server has every number, picture and
model that the project's own database has, and each once.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path

from mlflow import MlflowClient

from tests.project import ROOT, paint_set, tiny_params
from tests.tiny import build_tiny, section
from tests.tracking.conftest import Book, open_book
from tests.tracking.conftest import section as tracking
from tests.tracking.server import Mlflow, check_equal

KEYS = ("one", "two", "three", "four")
IMPATIENT = "from pipeline.tracking import mirror; mirror.FIRST_PAUSE = 0.5; from pipeline.cli import app; app()"
"""`morphline`, which looks again after half a second whether the server is back, so that more is cut off midway."""


def make(folder: Path, uri: str, steps: int) -> None:
    """A project with four sets, prepared."""
    folder.mkdir()
    build_tiny().save_pretrained(folder / "base")
    for number, key in enumerate(KEYS):
        paint_set(folder / "data/raw" / key, {f"{place}.png": "a red lake" for place in range(4)}, seed=10 * number)
    sets = "".join(f"  {key}: {{adapter: image, prepare: {{}}, train: {{}}, sample: {{}}}}\n" for key in KEYS)
    values = {
        "base.source": "base", "base.revision": section(folder / "base").revision, "train.steps": steps,
        "tracking.uri": uri, "tracking.required": "false", "tracking.pictures_every": 10, "tracking.system_every": 1.0,
    }  # fmt: skip
    morphs = "  one: {set: one, style: none, keyframes: [0.png, 1.png], morph: {}}\n"
    (folder / "params.yaml").write_text(tiny_params(values, sets=sets, morphs=morphs), encoding="utf-8")
    for key in KEYS:
        subprocess.run(**morphline(folder, "prepare", key), check=True)


def morphline(folder: Path, *arguments: str) -> dict[str, object]:
    """How to start a command in a project."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    return {"args": [sys.executable, "-c", IMPATIENT, *arguments], "cwd": folder, "env": environment}


def main() -> None:
    """Train, kill, sync, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        (top / "server").mkdir()
        server = Mlflow(top / "server")
        project = top / "project"
        make(project, server.uri, arguments.steps)
        trainings = [subprocess.Popen(**morphline(project, "train", key), stderr=subprocess.DEVNULL) for key in KEYS]
        kills = during = 0
        while kills < arguments.kills:
            server.start()
            time.sleep(rng.uniform(0, 10))
            during += any(training.poll() is None for training in trainings)
            server.kill()
            kills += 1
            time.sleep(rng.uniform(0, 3))
        codes = [training.wait() for training in trainings]
        print(f"{kills} kills, {during} of them while trainings ran; exit codes of these: {codes}", flush=True)
        server.start()
        synced = subprocess.run(**morphline(project, "track", "sync"), capture_output=True, text=True, check=False)
        print(synced.stdout, synced.stderr, f"exit code of track sync: {synced.returncode}", flush=True)
        with chdir(project):
            here, there = open_book(project, "morphline"), Book(tracking(server.uri), MlflowClient(server.uri))
            check_equal(here, there)
            numbers = sum(len(here.history(run, key)) for run in here.runs() for key in run.data.metrics)
            pictures = len(list(project.glob("mlartifacts/**/images/*.png")))
            models = len(there.client.search_logged_models([there.runs()[0].info.experiment_id]))
        server.kill()
        print(f"{len(here.runs())} runs, {numbers} numbers, {pictures} pictures, {models} models: each there, and once")


if __name__ == "__main__":
    main()
