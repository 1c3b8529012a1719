"""A small project in Git, and one migrated database (6 s) of which each test gets a copy at the top of its project."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from pipeline.sections import TrackingSection
from pipeline.tracking import close_parent, mirror, track, tracker
from tests.tracking.stub import Stub

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ROOT = Path(__file__).parents[2]
DVC_YAML = """\
stages:
  prepare:
    foreach: [alps]
    do: {cmd: prepare}
  train:
    foreach: [alps]
    do: {cmd: train}
  report:
    cmd: report
"""
DVC_LOCK = """\
schema: '2.0'
stages:
  prepare@alps:
    cmd: prepare
    outs:
    - {path: data/prepared/alps, hash: md5, md5: 0123456789abcdef0123456789abcdef.dir}
  train@alps:
    cmd: train
    deps:
    - {path: data/prepared/alps, hash: md5, md5: ffffffffffffffffffffffffffffffff.dir}
    outs:
    - {path: models/adapters/alps, hash: md5, md5: 11111111111111111111111111111111.dir}
  gone@alps:
    cmd: of a stage that dvc.yaml no longer has
  report:
    cmd: report
    outs:
    - {path: reports/index.html, hash: md5, md5: '22222222222222222222222222222222'}
"""


def make_project(folder: Path) -> Path:
    (folder / "data/prepared/alps").mkdir(parents=True)
    (folder / "reports").mkdir()
    (folder / "reports/index.html").write_text("made by the pipeline")
    (folder / "params.yaml").write_text("train: {rank: 8}\n")
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "dvc.lock").write_text(DVC_LOCK)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "Paint the alps")
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed project as the working folder, outside of DVC, with a short patience for servers."""
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    folder = make_project(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


@dataclass(frozen=True)
class FirstUse:
    """What two processes that started at once on a fresh project left behind."""

    folder: Path
    answers: list[tuple[int, str]]


ONE_OF_TWO = """
import sys
from pipeline.sections import TrackingSection
from pipeline.tracking import track
section = TrackingSection(
    uri=None, experiment="morphline", required=True, pictures_every=None, system_every=None, register=False
)
with track(f"train@{sys.argv[1]}", section, {}) as tracker:
    for step in range(30):
        tracker.metric("loss", step, step)
"""


@pytest.fixture(scope="session")
def first_use(tmp_path_factory: pytest.TempPathFactory) -> FirstUse:
    folder = make_project(tmp_path_factory.mktemp("first") / "project")
    bare = {name: text for name, text in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    environment = {**bare, "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO, key],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for key in ("alps", "woodcut")
    ]
    answers = [(process.communicate()[0], process.returncode) for process in both]
    return FirstUse(folder, [(code, output) for output, code in answers])


@dataclass(frozen=True)
class Book:
    """One experiment, to write to by `params` and to read by the rest."""

    params: TrackingSection
    client: "MlflowClient"

    def runs(self) -> "list[Run]":
        """Oldest first."""
        found = self.client.get_experiment_by_name(self.params.experiment)
        page = self.client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]) if found else []
        return list(page)

    def parents(self) -> "list[Run]":
        return [run for run in self.runs() if "mlflow.parentRunId" not in run.data.tags]

    def children(self, parent: "Run") -> "list[Run]":
        return [run for run in self.runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]

    def only(self, name: str) -> "Run":
        (run,) = [run for run in self.runs() if run.info.run_name == name]
        return run

    def history(self, run: "Run", key: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in self.client.get_metric_history(run.info.run_id, key)]

    def artifacts(self, run: "Run") -> Path:
        assert run.info.artifact_uri.startswith("mlartifacts/")
        return Path(run.info.artifact_uri).absolute()


def open_book(project: Path, experiment: str) -> Book:
    """The database of a project, which is the working folder."""
    from mlflow import MlflowClient

    return Book(section(None, experiment=experiment), MlflowClient(f"sqlite:///{project / 'mlflow.db'}"))


@pytest.fixture
def migrated(project: Path, first_use: FirstUse) -> Path:
    """The project with an empty database in it that need not be made first."""
    empty(Path(shutil.copy(first_use.folder / "mlflow.db", project)))
    return project


def empty(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        for table in ("tags", "params", "metrics", "latest_metrics", "inputs", "experiment_tags", "runs"):
            connection.execute(f"DELETE FROM {table}")
        connection.execute("DELETE FROM experiments WHERE experiment_id > 0")


@pytest.fixture
def book(migrated: Path, request: pytest.FixtureRequest) -> Book:
    return open_book(migrated, request.node.name)


@pytest.fixture
def stub(migrated: Path, tmp_path: Path) -> Iterator[Stub]:
    server = Stub(tmp_path / "artifacts")
    yield server
    server.stop()


def section(uri: str | None, **changes: Any) -> TrackingSection:
    return TrackingSection(
        **{
            "uri": uri,
            "experiment": "morphline",
            "required": True,
            "pictures_every": None,
            "system_every": None,
            "register": False,
            **changes,
        }
    )


def wait_a_moment() -> None:
    """MLflow orders runs by milliseconds."""
    time.sleep(0.002)


def offline_stage(uri: str | None, name: str, steps: int = 3, experiment: str = "morphline") -> None:
    params = section(uri, required=False, experiment=experiment)
    with track(name, params, {"caption": "a\u2028hill"}) as tracking:
        for step in range(steps):
            tracking.metric("loss", step / 8, step)


def full_stage(project: Path) -> Book:
    """A run with everything that a run can have, in the project's database."""
    weights = {"unet.to_q.lora_A.weight": np.ones((2, 4), np.float32)}
    save_file(weights, project / "dawn.safetensors", metadata={"rank": "2"})
    Image.new("RGB", (64, 16), (200, 10, 10)).save(project / "strip.png")
    with track("train@alps", section(None), {"rank": 8}, datasets={"alps": Path("data/prepared/alps")}) as tracking:
        for step in range(4):
            tracking.metric("loss", step / 8, step)
        tracking.metric("final_loss", 1.0)
        tracking.picture("training", Image.new("RGB", (4, 4)), step=3)
        tracking.show(project / "strip.png", "the strip")
        tracking.artifact(project / "params.yaml", "files")
        tracking.adapter(project / "dawn.safetensors", "models/pocket", None, "alps-dawn")
    close_parent(section(None))
    return open_book(project, "morphline")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is reported to the server at once."""
    monkeypatch.setattr(tracker, "SECONDS", -1.0)
    monkeypatch.setattr(mirror, "EVERY", 0.0)
    monkeypatch.setattr(mirror, "SHARE", 0.0)


def losses(project: Path, name: str = "train@alps") -> list[tuple[int, float]]:
    """What the project's own database has."""
    book = open_book(project, "morphline")
    return book.history(book.only(name), "loss")
