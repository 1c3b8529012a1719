"""A studio over a small project, and a stand-in for the command line that says and does what a test needs."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from pipeline.params import load_params
from pipeline.studio.jobs import Job, Queue
from pipeline.studio.project import Project
from pipeline.studio.runner import Runner
from pipeline.studio.server import Studio, create_app
from tests.project import tiny_params

TOKEN = "the-token-of-this-test"
ORIGIN = "http://127.0.0.1:8300"

# What the job's title asks of it: how many steps of a tenth of a second, and how it ends.
STAND_IN = """
import os, signal, sys, time
from pathlib import Path
from tqdm import tqdm
told = dict(part.split("=", 1) for part in sys.argv[1:] if "=" in part)
print("Running stage 'train@a':", flush=True)
with open("ran.txt", "a") as ran:
    ran.write(told.get("name", "") + "\\n")
if told.get("ignore"):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
try:
    for step in (bar := tqdm(range(int(told.get("steps", 1))), desc="alps", unit="step", mininterval=0)):
        time.sleep(0.1)
        bar.set_postfix(loss=1 / (step + 1))
except KeyboardInterrupt:
    Path("saved.txt").write_text("saved")
    sys.exit(130)
if told.get("fail"):
    print("morphline check: 1 problem(s)", file=sys.stderr)
    print("  params.yaml: morph.steps: 5000 steps. Write no more.", file=sys.stderr)
    sys.exit(1)
"""


@pytest.fixture
def small_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with its params alone, as the working folder."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project/params.yaml").write_text(tiny_params({}), encoding="utf-8")
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def project(small_project: Path) -> Project:
    return Project(load=load_params, morphline=[sys.executable, str(small_project.parent / "stand_in.py")])


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Shells start what runs in the background with SIGINT ignored, and processes inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def runner_of(project: Project, *patience: tuple[int, float]) -> Runner:
    return Runner(Queue(), project.morphline, patience=patience or ((signal.SIGINT, 20.0), (signal.SIGKILL, 5.0)))


@pytest.fixture
def studio(project: Project, interruptible: None) -> Studio:
    return Studio(project, runner_of(project))


@pytest.fixture
def stranger(studio: Studio) -> Iterator[TestClient]:
    """A browser without the token."""
    with TestClient(create_app(studio, TOKEN), base_url=ORIGIN, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def browser(stranger: TestClient) -> TestClient:
    """A browser that has opened the printed address; its requests come from the studio's own pages."""
    assert stranger.get(f"/?token={TOKEN}").status_code == 200
    stranger.headers["origin"] = ORIGIN
    return stranger


def until(ready: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def wait_for(queue: Queue, job: Job, *status: str) -> Job:
    until(lambda: queue.get(job.id).status in status)  # type: ignore[union-attr]
    found = queue.get(job.id)
    assert found is not None
    return found
