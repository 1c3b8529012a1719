"""A real `mlflow server` to be killed and started again, and whether it has what a project's own database has."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from mlflow import MlflowClient

from tests.tracking.conftest import Book

QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


class Mlflow:
    """`mlflow server` on loopback, as docs/teams.md has it, to be killed and started again.

    backend, artifacts: where runs and files go; "": to a database and a folder in `folder`. more: environment.
    """

    def __init__(self, folder: Path, backend: str = "", artifacts: str = "", more: Mapping[str, str] = {}) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.backend = backend or f"sqlite:///{folder / 'mlflow.db'}"
        self.artifacts = artifacts or str(folder / "artifacts")
        self.more = more
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        store = ["--backend-store-uri", self.backend, "--artifacts-destination", self.artifacts]
        self.process = subprocess.Popen(
            [*command, "--workers", "1", *store],
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, **self.more, **QUIET},
        )  # fmt: skip
        for _ in range(6000):
            try:
                with urlopen(f"{self.uri}/health", timeout=5):
                    return
            except (URLError, OSError):
                assert self.process.poll() is None, "mlflow server has ended"
                time.sleep(0.1)
        raise TimeoutError("mlflow server does not start")

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


def check_equal(here: Book, there: Book) -> None:
    """Everything is there, and once."""
    runs = {run.data.tags["morphline.run"]: run for run in there.runs()}
    assert len(runs) == len(there.runs()) == len(here.runs())
    for mine in here.runs():
        theirs = runs[mine.info.run_id]
        assert (theirs.info.status, theirs.info.run_name) == (mine.info.status, mine.info.run_name)
        assert (theirs.info.start_time, theirs.info.end_time) == (mine.info.start_time, mine.info.end_time)
        assert theirs.data.params == mine.data.params and theirs.data.metrics == mine.data.metrics
        for key in mine.data.metrics:
            assert sorted(there.history(theirs, key)) == sorted(here.history(mine, key))
        for key in ("stages.ran", "dvc.stage", "mlflow.loggedImages", "morphline.state"):
            assert theirs.data.tags.get(key) == mine.data.tags.get(key)
        mine_note, their_note = (run.data.tags["mlflow.note.content"] for run in (mine, theirs))
        assert their_note == mine_note.replace(mine.info.run_id, theirs.info.run_id)
        if parent := mine.data.tags.get("mlflow.parentRunId"):
            assert theirs.data.tags["mlflow.parentRunId"] == runs[parent].info.run_id
        used = [[(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs] for run in (mine, theirs)]
        assert sorted(used[0]) == sorted(used[1])
        assert len(theirs.outputs.model_outputs) == len(mine.outputs.model_outputs)
        files = [listed(book.client, run.info.run_id) for book, run in ((here, mine), (there, theirs))]
        assert files[0] == files[1]
    models = [book.client.search_logged_models([book.runs()[0].info.experiment_id]) for book in (here, there)]
    assert sorted(model.name for model in models[1]) == sorted(model.name for model in models[0])
    for model in models[1]:
        assert str(model.status) == "READY" and model.source_run_id in {run.info.run_id for run in there.runs()}


def listed(client: MlflowClient, run_id: str, path: str | None = None) -> dict[str, int]:
    """Paths and sizes of a run's files; the artifacts of its models are not among them."""
    found: dict[str, int] = {}
    for item in client.list_artifacts(run_id, path):
        if item.is_dir and not item.path.startswith("alps-dawn"):
            found |= listed(client, run_id, item.path)
        elif not item.is_dir:
            found[item.path] = item.file_size
    return found
