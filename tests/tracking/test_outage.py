"""Tracking never costs a result: servers that are away, fall silent, refuse, talk nonsense, or come back.

Every run is in the project's own database all the while, so each test looks there too.
"""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from PIL import Image

from pipeline.errors import UserError
from pipeline.tracking import close_parent, mirror, sync, track
from tests.tracking.conftest import losses, open_book, section
from tests.tracking.stub import Stub

pytestmark = pytest.mark.usefixtures("at_once")


def test_down_at_the_start_is_a_clear_error(stub: Stub, project: Path) -> None:
    stub.stop()
    with pytest.raises(UserError) as caught, track("train@alps", section(stub.uri), {}):
        pytest.fail("the stage must not begin")
    (problem,) = caught.value.problems
    assert problem.where == f"tracking server {stub.uri}"
    assert problem.found == "cannot be used (Connection refused)"
    assert "MLFLOW_TRACKING_URI" in problem.fix
    assert "tracking.required" in problem.fix
    assert not open_book(project, "morphline").runs(), "what never began has no run"


def test_down_throughout_keeps_everything_for_later(
    stub: Stub, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stub.stop()
    (project / "curves.csv").write_text("step,loss\n")
    params = section(stub.uri, required=False)
    with track("train@alps", params, {"rank": 8}, datasets={"alps": Path("data/prepared/alps")}) as tracking:
        for step in range(20):
            tracking.metric("loss", step / 8, step)
        tracking.artifact(project / "curves.csv")
        tracking.picture("dawn", Image.new("RGB", (4, 4)), step=3)
    (project / "curves.csv").unlink()
    everything = [(step, step / 8) for step in range(20)]
    assert losses(project) == everything
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "one warning, not one a step"
    assert stub.uri in caplog.text and "morphline track sync" in caplog.text

    stub.start()
    assert [outcome.failed for outcome in sync(params)] == [False, False]
    run = stub.named("train@alps")
    assert run["info"]["status"] == "FINISHED"
    assert run["params"] == {"rank": "8"}
    assert [used["dataset"]["digest"] for used in run["datasets"]] == ["0123456789abcdef0123456789abcdef.dir"]
    assert stub.history("train@alps", "loss") == everything
    folder = stub.artifacts / run["info"]["run_id"]
    assert [path.read_text() for path in stub.artifacts.rglob("curves.csv")] == ["step,loss\n"]
    assert (folder / "curves.csv").is_file() and len(list(folder.rglob("dawn+step+3*.png"))) == 1
    assert run["tags"]["mlflow.loggedImages"] == "True", "which shows them in the dashboard"


@pytest.mark.parametrize("back", [True, False])
def test_down_midway_costs_nothing_and_loses_no_numbers(
    stub: Stub, project: Path, caplog: pytest.LogCaptureFixture, back: bool
) -> None:
    with track("train@alps", section(stub.uri), {}) as tracking:
        for step in range(60):
            if step == 20:
                stub.stop()
            if step == 40 and back:
                stub.start()
            tracking.metric("loss", step / 8, step)
    everything = [(step, step / 8) for step in range(60)]
    assert losses(project) == everything
    if back:
        assert stub.history("train@alps", "loss") == everything
        assert stub.named("train@alps")["info"]["status"] == "FINISHED"
    else:
        assert stub.history("train@alps", "loss") == everything[:20]
        assert open_book(project, "morphline").only("train@alps").info.status == "FINISHED"
        assert len(caplog.records) == 1


def test_a_server_that_comes_back_is_found_before_the_end(
    stub: Stub, project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mirror, "FIRST_PAUSE", 0.0)
    with track("train@alps", section(stub.uri), {}) as tracking:
        tracking.metric("loss", 0, 0)
        stub.stop()
        tracking.metric("loss", 1, 1)
        stub.start()
        tracking.metric("loss", 2, 2)
        assert stub.history("train@alps", "loss") == [(0, 0), (1, 1), (2, 2)]
    assert "answers again and has everything" in caplog.text


def test_a_server_that_falters_while_catching_up_hears_each_number_once(
    stub: Stub, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(mirror, "BATCH", 2)
    with track("train@alps", section(stub.uri), {}) as tracking:
        stub.stop()
        for step in range(10):
            tracking.metric("loss", step, step)
        stub.lose = lambda call, body: any(metric["value"] == 5 for metric in body.get("metrics", []))
        stub.start()
        tracking.metric("loss", 10, 10)
        assert stub.history("train@alps", "loss") == [(step, step) for step in range(6)], "it heard, we did not"
        stub.lose = lambda call, body: False
        tracking.metric("loss", 11, 11)
    assert stub.history("train@alps", "loss") == losses(project) == [(step, step) for step in range(12)]


def test_a_server_that_falls_silent_is_asked_only_now_and_then(stub: Stub, project: Path) -> None:
    with track("train@alps", section(stub.uri), {}) as tracking:
        stub.hang = 1.2  # longer than the test's patience of one second
        before = len(stub.requests)
        for step in range(200):
            tracking.metric("loss", step, step)
        assert len(stub.requests) == before + 1
        stub.hang = 0.0
    assert stub.history("train@alps", "loss") == losses(project) == [(step, step) for step in range(200)]


def test_closing_the_parent_never_raises(stub: Stub, project: Path, caplog: pytest.LogCaptureFixture) -> None:
    with track("report", section(stub.uri), {}):
        pass
    stub.stop()
    close_parent(section(stub.uri))
    assert "does not answer" in caplog.text
    assert "morphline.open" not in open_book(project, "morphline").parents()[0].data.tags, "closed here all the same"
    (project / "mlflow.db").write_bytes(b"no database")
    close_parent(section(stub.uri))
    assert "The parent run stays open" in caplog.text


def test_ctrl_c_while_the_server_is_slow_loses_no_numbers(
    stub: Stub, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt), track("train@alps", section(stub.uri), {}) as tracking:
        tracking.metric("loss", 0, 0)
        with monkeypatch.context() as patched:
            patched.setattr(mirror.Mirror, "bring", _interrupted)
            tracking.metric("loss", 1, 1)
    assert stub.history("train@alps", "loss") == losses(project) == [(0, 0), (1, 1)]
    assert stub.named("train@alps")["info"]["status"] == "KILLED"


def test_ctrl_c_while_the_database_is_slow_loses_no_numbers(migrated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), track("train@alps", section(None), {}) as tracking:
        tracking.metric("loss", 0, 0)
        with monkeypatch.context() as patched:
            patched.setattr(MlflowClient, "log_batch", _interrupted)
            tracking.metric("loss", 1, 1)
    assert losses(migrated) == [(0, 0), (1, 1)]


def _interrupted(*arguments: object, **keywords: object) -> None:
    raise KeyboardInterrupt


def test_a_database_that_is_locked_for_a_while_loses_nothing(
    migrated: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = MlflowClient.log_batch

    def impatient(*arguments: Any, **keywords: Any) -> None:
        """MLflow waits for 20 seconds."""
        with closing(sqlite3.connect(migrated / "mlflow.db", timeout=0)) as there:
            there.execute("BEGIN IMMEDIATE")
            there.rollback()
        plain(*arguments, **keywords)

    monkeypatch.setattr(MlflowClient, "log_batch", impatient)
    with track("train@alps", section(None), {}) as tracking:
        with closing(sqlite3.connect(migrated / "mlflow.db")) as other:
            other.execute("BEGIN EXCLUSIVE")
            tracking.metric("loss", 0, 0)
            other.rollback()
        tracking.metric("loss", 1, 1)
    assert losses(migrated) == [(0, 0), (1, 1)]
    assert "database is locked" in caplog.text


def test_a_project_that_cannot_be_written_to_is_an_error_unless_tracking_is_not_required(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (project / "mlflow.db").write_bytes(b"no database")
    said = r"tracking database sqlite:///.*cannot be used"
    with pytest.raises(UserError, match=said) as caught, track("train@alps", section(None), {}):
        pytest.fail("the stage must not begin")
    assert "move it away" in str(caught.value)
    with track("train@alps", section(None, required=False), {"rank": 8}) as tracking:
        tracking.metric("loss", 1, 0)
        tracking.picture("dawn", Image.new("RGB", (4, 4)), step=3)
        tracking.set_tags({"a": "b"})
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_passwords_are_not_shown(migrated: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = "http://ann:hunter2@127.0.0.1:9"
    with pytest.raises(UserError) as caught, track("train@alps", section(uri), {}):
        pass
    with track("train@alps", section(uri, required=False), {}) as tracking:
        tracking.metric("loss", 1, 0)
    close_parent(section(uri))
    with pytest.raises(UserError) as synced:
        list(sync(section(uri)))
    for text in (str(caught.value), str(synced.value), caplog.text):
        assert "hunter2" not in text
    assert b"hunter2" not in (migrated / "mlflow.db").read_bytes()
    assert "ann:***@" in caplog.text


def test_nonsense_is_not_tracked_but_does_not_raise(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    with track("train@alps", section(stub.uri), {}) as tracking:
        tracking.metric("loss", "no number", 0)  # type: ignore[arg-type]
        tracking.picture("gone", Path("gone.png"), step=1)
    assert stub.named("train@alps")["info"]["status"] == "FINISHED"
    assert caplog.text.count("Not tracked") == 2
