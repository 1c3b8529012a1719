"""Runs as they stand in a real MLflow database: a parent for a state, a child for a stage."""

import json
import math
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.tracking import close_parent, track
from tests.tracking.conftest import ROOT, Book, FirstUse, git, wait_a_moment


def test_two_processes_may_create_the_database_at_once(first_use: FirstUse) -> None:
    from mlflow import MlflowClient

    assert [code for code, _ in first_use.answers] == [0, 0], first_use.answers
    assert [output for _, output in first_use.answers] == ["", ""], "MLflow's chatter would break progress bars"
    client = MlflowClient(f"sqlite:///{first_use.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("morphline")
    assert experiment.artifact_location == "mlartifacts/morphline"
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    (parent,) = [run for run in runs.values() if "mlflow.parentRunId" not in run.data.tags]
    assert len(runs) == 3
    for name in ("train@alps", "train@woodcut"):
        assert runs[name].data.tags["mlflow.parentRunId"] == parent.info.run_id
        history = client.get_metric_history(runs[name].info.run_id, "loss")
        assert [(metric.step, metric.value) for metric in history] == [(step, step) for step in range(30)]


def test_a_stage_is_a_child_with_params_metrics_tags_and_datasets(book: Book, project: Path) -> None:
    prepared = {"alps": Path("data/prepared/alps")}
    given = {"rank": 8, "schedule": {"warmup": 10}}
    with track("train@alps", book.params, given, datasets=prepared, tags={"base": "models/pocket"}) as tracker:
        for step in range(2500):
            tracker.metric("loss/dawn", 1 / (step + 1), step)
        tracker.metrics({"psnr": 30.5, "ssim": float(np.float32(0.5))})
        tracker.set_tags({"device": "cpu"})

    (parent,) = book.parents()
    (child,) = book.children(parent)
    assert (child.info.run_name, child.info.status) == ("train@alps", "FINISHED")
    assert (parent.info.status, parent.info.run_name) == (
        "FINISHED",
        git(project, "log", "-1", "--format=%h %s", "--abbrev=7"),
    )
    assert child.data.params == {"rank": "8", "schedule.warmup": "10"}
    assert book.history(child, "loss/dawn") == [(step, 1 / (step + 1)) for step in range(2500)]
    assert child.data.metrics["psnr"] == 30.5
    assert child.data.metrics["ssim"] == 0.5

    assert parent.data.params == {"train.alps.rank": "8", "train.alps.schedule.warmup": "10"}
    assert parent.data.metrics == {"train.alps/psnr": 30.5, "train.alps/ssim": 0.5}

    tags = child.data.tags
    assert tags["mlflow.source.git.commit"] == git(project, "rev-parse", "HEAD")
    assert tags["mlflow.source.git.branch"] == "main"
    assert tags["mlflow.source.git.dirty"] == "false"
    assert tags["dvc.stage"] == "train@alps"
    assert tags["torch.version"] == version("torch")
    assert tags["diffusers.version"] == version("diffusers")
    assert tags["peft.version"] == version("peft")
    assert (tags["base"], tags["device"]) == ("models/pocket", "cpu")

    (used,) = child.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("alps", "0123456789abcdef0123456789abcdef.dir")
    assert parent.inputs.dataset_inputs[0].dataset == used.dataset


def test_what_is_not_finite_is_a_gap_and_is_named(book: Book) -> None:
    with track("train@alps", book.params, {}) as tracker:
        for step, value in enumerate([1.0, math.nan, math.inf, 2.0]):
            tracker.metric("loss", value, step)
    (child,) = book.children(book.parents()[0])
    values = [value for _, value in book.history(child, "loss")]
    assert values[0] == 1
    assert math.isnan(values[1])
    assert math.isnan(values[2])
    assert values[3] == 2
    assert child.data.tags["not finite"] == "loss (nan at step 1)"


def test_a_failed_stage_says_why_and_is_carried_on_in_the_same_parent(book: Book) -> None:
    with pytest.raises(ValueError, match="no such colour"), track("train@alps", book.params, {}) as tracker:
        tracker.metric("loss", 3, 0)
        raise ValueError("no such colour")
    (parent,) = book.parents()
    (failed,) = book.children(parent)
    assert (failed.info.status, parent.info.status) == ("FAILED", "FAILED")
    assert (failed.data.tags["error"], failed.data.tags["error.type"]) == ("no such colour", "ValueError")
    assert failed.data.tags["mlflow.note.content"].startswith("**ValueError**: no such colour")
    assert book.history(failed, "loss") == [(0, 3)]

    wait_a_moment()
    with track("train@alps", book.params, {}):
        (parent,) = book.parents()
        assert parent.info.status == "RUNNING"
    (parent,) = book.parents()
    assert [run.info.status for run in book.children(parent)] == ["FAILED", "FINISHED"]
    assert parent.info.status == "FINISHED"


def test_a_stage_that_is_stopped_is_killed(book: Book) -> None:
    with pytest.raises(KeyboardInterrupt), track("train@alps", book.params, {}):
        raise KeyboardInterrupt
    assert book.only("train@alps").info.status == "KILLED"


def test_the_report_closes_the_parent_and_names_what_did_not_run(book: Book) -> None:
    with track("train@alps", book.params, {}):
        pass
    wait_a_moment()
    with track("report", book.params, {}):
        pass
    close_parent(book.params)
    (parent,) = book.parents()
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["stages.ran"] == "train@alps, report"
    assert parent.data.tags["stages.not_run"] == "prepare@alps"
    assert "Did not need to run: `prepare@alps`" in parent.data.tags["mlflow.note.content"]

    wait_a_moment()
    with track("train@alps", book.params, {}):
        pass
    first, second = book.parents()
    assert first.info.run_id == parent.info.run_id
    assert len(book.children(second)) == 1, "`dvc repro -f` of a closed state is a parent of its own"


def test_another_state_is_another_parent_and_closes_what_was_left_open(book: Book, project: Path) -> None:
    with track("train@alps", book.params, {}):
        pass
    (project / "params.yaml").write_text("train: {rank: 4}\n")
    wait_a_moment()
    with track("train@alps", book.params, {}):
        pass
    first, second = book.parents()
    assert "morphline.open" not in first.data.tags
    assert "morphline.open" in second.data.tags
    assert second.info.run_name == first.info.run_name.replace(" ", "+ ", 1)
    assert second.data.tags["mlflow.source.git.dirty"] == "true"
    assert "edited since: `params.yaml`" in second.data.tags["mlflow.note.content"]
    assert [len(book.children(run)) for run in (first, second)] == [1, 1]


def test_an_experiment_of_dvc_names_its_parent(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "rank-4")
    with track("train@alps", book.params, {}):
        pass
    (parent,) = book.parents()
    assert parent.info.run_name == "rank-4"
    assert book.only("train@alps").data.tags["dvc.experiment"] == "rank-4"


KILLED = """
import os, signal, sys
from mlflow.entities import Metric
from pipeline.sections import TrackingSection
from pipeline.tracking import track
section = TrackingSection(
    uri=None, experiment=sys.argv[1], required=True, pictures_every=None, system_every=None, register=False
)
with track("train@alps", section, {}) as tracker:
    tracker._store.client.log_batch(tracker._child, metrics=[Metric("loss", 1, 1_900_000_000_000, 0)])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_stage_whose_process_died_does_not_run_forever(book: Book) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, book.params.experiment], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert killed.returncode == -signal.SIGKILL
    assert [run.info.status for run in book.runs()] == ["RUNNING", "RUNNING"]
    with track("report", book.params, {}):
        run = book.only("train@alps")
        assert run.info.status == "KILLED"
        assert run.info.end_time == 1_900_000_000_000, "when it wrote last"
    assert len(book.parents()) == 1


def test_a_stage_at_work_is_not_taken_for_dead(book: Book) -> None:
    with track("train@alps", book.params, {}):
        wait_a_moment()
        with track("sample@alps", book.params, {}):
            assert book.only("train@alps").info.status == "RUNNING"
        assert book.parents()[0].info.status == "RUNNING", "one of its stages is at work"
    assert book.parents()[0].info.status == "FINISHED"


def test_pictures_and_files_are_artifacts(book: Book, project: Path) -> None:
    red = Image.new("RGBA", (8, 6), (200, 10, 10, 255))
    red.save(project / "strip.png")
    (project / "curves.csv").write_text("step,loss\n")
    with track("sample@alps", book.params, {}) as tracker:
        tracker.picture("samples/dawn", red, step=0)
        tracker.picture("samples/dawn", project / "strip.png", step=50)
        tracker.picture("strip", project / "strip.png")
        tracker.picture("grids/dawn", red)
        tracker.artifact(project / "curves.csv", "curves")
        tracker.artifact(project / "not there.csv")
    run = book.only("sample@alps")
    assert run.info.status == "FINISHED"
    root = book.artifacts(run)
    assert (root / "curves/curves.csv").read_text() == "step,loss\n"
    assert (root / "pictures/strip.png").read_bytes() == (project / "strip.png").read_bytes()
    assert Image.open(root / "pictures/grids/dawn.png").size == (8, 6)
    steps = sorted(path.name.split("+")[2] for path in (root / "images").glob("samples~dawn+step+*.png"))
    assert steps == ["0", "50"]
    assert not list((project / ".work/tracking").iterdir())


def test_a_table_of_frames_is_under_evaluation_as_mlflow_reads_it(book: Book, project: Path) -> None:
    Image.new("RGB", (8, 6), "red").save(project / "strip.png")
    columns = {"frame": ["0000", "0001"], "morph": [project / "strip.png"] * 2, "to the next": [0.25, ""]}
    with track("evaluate@alps", book.params, {}) as tracker:
        tracker.table("frames", columns)
    run = book.only("evaluate@alps")
    table = book.client.load_table(run.info.experiment_id, "frames.json", [run.info.run_id])
    assert list(table.columns) == list(columns) and table["to the next"].tolist() == [0.25, ""]
    for shown in table["morph"]:
        with Image.open(book.artifacts(run) / shown["filepath"]) as picture:
            assert shown["type"] == "image" and picture.getpixel((0, 0)) == (255, 0, 0)
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "frames.json", "type": "table"}]
