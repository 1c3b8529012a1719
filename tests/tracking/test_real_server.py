"""A real MLflow server that goes away and comes back."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.tracking import sync, track
from tests.project import tiny_params
from tests.tracking.conftest import ROOT, Book, full_stage, offline_stage, open_book, section
from tests.tracking.server import Mlflow, check_equal


@pytest.fixture
def mlflow_server(migrated: Path, tmp_path: Path) -> Iterator[Mlflow]:
    (tmp_path / "server").mkdir()
    (tmp_path / "server/mlflow.db").write_bytes((migrated / "mlflow.db").read_bytes())
    server = Mlflow(tmp_path / "server")
    yield server
    server.kill()


def test_a_real_server_down_at_the_start_midway_and_at_the_end(
    mlflow_server: Mlflow, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    uri, runner = mlflow_server.uri, CliRunner()
    params = section(uri)
    (project / "params.yaml").write_text(tiny_params({"tracking.uri": uri, "tracking.system_every": "null"}))
    offline_stage(uri, "prepare@alps")
    answer = runner.invoke(app, ["track", "sync"])
    assert answer.exit_code == 1
    assert answer.stderr.startswith("morphline track sync: 1 problem(s)\n") and "Connection refused" in answer.stderr

    mlflow_server.start()
    with track("train@alps", params, {"rank": 8}) as midway, track("sample@alps", params, {}) as at_the_end:
        at_the_end.metric("loss", 0.5, 0)
        at_the_end._flush()
        midway.metric("loss", 0.0, 0)
        midway._flush()
        mlflow_server.kill()
        for step in range(1, 50):
            midway.metric("loss", step / 8, step)
    here = full_stage(project)
    mlflow_server.start()
    answer = runner.invoke(app, ["track", "sync"])
    assert answer.exit_code == 0, answer.output
    *lines, last = answer.stdout.splitlines()
    assert sorted(line.split(":")[0].strip() for line in lines)[-4:] == [
        "prepare@alps", "sample@alps", "train@alps", "train@alps",
    ]  # fmt: skip
    assert last == f"{uri} has all runs of this project"
    answer = runner.invoke(app, ["track", "sync"])
    assert (answer.exit_code, answer.stdout) == (0, f"{uri} has all runs of this project\n")

    there = Book(params, MlflowClient(uri))
    check_equal(here, there)
    run = there.client.get_run(there.only("sample@alps").info.run_id)
    assert there.history(run, "loss") == [(0, 0.5)]
    (model,) = there.client.search_logged_models([run.info.experiment_id])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    import mlflow

    adapter = Path(mlflow.diffusers.load_model(model.model_uri).adapter_path)
    (file,) = adapter.iterdir()
    assert file.read_bytes() == (project / "dawn.safetensors").read_bytes()
    card = (adapter.parent / "MLmodel").read_text(encoding="utf-8")
    assert f"model_id: {model.model_id}" in card and f"run_id: {model.source_run_id}" in card


WRITER = """
import sys, time
from PIL import Image
from pipeline.sections import TrackingSection
from pipeline.tracking import mirror, track
section = TrackingSection(
    uri=sys.argv[1], experiment="morphline", required=False, pictures_every=None, system_every=0.5, register=False
)
mirror.FIRST_PAUSE = mirror.EVERY = 0.2
with track(f"train@{sys.argv[2]}", section, {"rank": 8}) as tracker:
    for step in range(200):
        tracker.metric("loss", step / 8, step)
        if step % 50 == 0:
            tracker.picture("training", Image.new("RGB", (8, 8)), step)
            tracker._flush()
        time.sleep(0.05)
"""


def test_a_real_server_killed_and_started_under_four_stages_has_everything_once(
    mlflow_server: Mlflow, project: Path
) -> None:
    """tests/benchmarks/outages.py does the same to four real trainings, ten times."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    four = [
        subprocess.Popen([sys.executable, "-c", WRITER, mlflow_server.uri, key], env=environment)
        for key in ("alps", "hills", "woodcut", "dots")
    ]
    while any(process.poll() is None for process in four):
        mlflow_server.start()
        time.sleep(2)
        mlflow_server.kill()
    assert [process.returncode for process in four] == [0] * 4
    mlflow_server.start()
    assert not [str(outcome) for outcome in sync(section(mlflow_server.uri)) if outcome.failed]
    here = open_book(project, "morphline")
    check_equal(here, Book(section(mlflow_server.uri), MlflowClient(mlflow_server.uri)))
    assert here.history(here.only("train@dots"), "loss") == [(step, step / 8) for step in range(200)]
