"""`morphline track sync`: what a server lacks arrives there once, whenever and however often it is brought."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.tracking import close_parent, sync, track
from tests.hostile.disks import full_disk
from tests.tracking.conftest import ROOT, offline_stage, open_book, section, wait_a_moment
from tests.tracking.stub import Stub

THREE = [(0, 0), (1, 0.125), (2, 0.25)]


def test_what_a_server_lacks_is_brought_once(stub: Stub, project: Path) -> None:
    stub.stop()
    offline_stage(stub.uri, "train@alps")
    offline_stage(stub.uri, "morph@alps")
    stub.start()
    parent, first, second = sync(section(stub.uri))
    assert not parent.failed
    assert (first.stage, first.failed, first.problem) == ("train@alps", False, "")
    assert str(second) == f"morph@alps: {second.sent} sent" and second.sent > 4
    for name in ("train@alps", "morph@alps"):
        run = stub.named(name)
        assert (run["info"]["status"], run["params"]) == ("FINISHED", {"caption": "a\u2028hill"})
        assert stub.history(name, "loss") == THREE
    assert len(stub.runs) == 3, "one parent for both"
    written = [call for call in stub.requests if call not in READING]
    assert list(sync(section(stub.uri))) == []
    assert [call for call in stub.requests if call not in READING] == written, "nothing is sent twice"


READING = ("experiments/get-by-name", "experiments/search", "runs/search", "runs/get", "logged-models/search")


def test_runs_of_a_time_without_a_server_are_brought_too(stub: Stub, project: Path) -> None:
    offline_stage(None, "train@alps", experiment="another")
    assert [outcome.failed for outcome in sync(section(stub.uri))] == [False, False]
    assert stub.history("train@alps", "loss") == THREE
    assert set(stub.experiments) == {"morphline", "another"}


def test_a_server_that_is_still_away_is_reported_and_nothing_is_lost(stub: Stub, project: Path) -> None:
    stub.stop()
    offline_stage(stub.uri, "train@alps")
    with pytest.raises(UserError) as caught:
        list(sync(section(stub.uri)))
    (problem,) = caught.value.problems
    assert problem.found == "cannot be used (Connection refused)"
    assert "morphline track sync" in problem.fix
    here = open_book(project, "morphline")
    assert here.history(here.only("train@alps"), "loss") == THREE
    with pytest.raises(UserError, match="no tracking server is named"):
        list(sync(section(None)))


def test_a_server_that_goes_away_again_gets_the_rest_later(stub: Stub, project: Path) -> None:
    stub.stop()
    offline_stage(stub.uri, "train@alps", steps=3)
    stub.start()
    stub.drop = lambda call, body: bool(body.get("metrics"))
    parent, outcome = sync(section(stub.uri))
    assert not parent.failed and outcome.failed and outcome.problem
    assert stub.named("train@alps")["params"] and stub.named("train@alps")["info"]["status"] == "RUNNING"
    stub.drop = lambda call, body: False
    (outcome,) = sync(section(stub.uri))
    assert not outcome.failed
    assert stub.history("train@alps", "loss") == THREE
    assert stub.named("train@alps")["info"]["status"] == "FINISHED"
    assert len(stub.runs) == 2


def test_a_stage_at_work_brings_its_own(stub: Stub, project: Path) -> None:
    with track("train@alps", section(stub.uri), {}) as tracking:
        stub.stop()
        tracking.artifact(project / "params.yaml")
        stub.start()
        (outcome,) = [outcome for outcome in sync(section(stub.uri)) if outcome.stage == "train@alps"]
        assert (outcome.sent, outcome.failed) == (0, False)
        assert "left to the process that is at work on it" in str(outcome)
        assert stub.named("train@alps")["info"]["status"] == "RUNNING"
        assert not list(stub.artifacts.rglob("params.yaml"))
    assert stub.named("train@alps")["info"]["status"] == "FINISHED"
    assert list(stub.artifacts.rglob("params.yaml"))
    assert list(sync(section(stub.uri))) == []


def test_two_at_once_bring_each_run_once(stub: Stub, project: Path) -> None:
    stub.stop()
    for name in ("train@alps", "train@woodcut", "morph@alps"):
        offline_stage(stub.uri, name)
    stub.start()
    outcomes: list[Any] = []
    both = [threading.Thread(target=lambda: outcomes.extend(sync(section(stub.uri)))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert not [str(outcome) for outcome in outcomes if outcome.failed]
    assert len(stub.runs) == 4, "none was made twice"
    for name in ("train@alps", "train@woodcut", "morph@alps"):
        assert stub.history(name, "loss") == THREE


KILLED = """
import os, signal, sys
from pipeline.sections import TrackingSection
from pipeline.tracking import track
section = TrackingSection(
    uri=sys.argv[1], experiment="morphline", required=True, pictures_every=None, system_every=None, register=False
)
with track("train@alps", section, {}) as tracker:
    tracker.metric("loss", 0.5, 1)
    tracker._flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_stage_that_was_killed_is_no_longer_running(stub: Stub, project: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, stub.uri], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert stub.named("train@alps")["info"]["status"] == "RUNNING"
    assert [outcome.failed for outcome in sync(section(stub.uri))] == [False, False]
    assert {run["info"]["status"] for run in stub.alive()} == {"KILLED"}
    assert stub.history("train@alps", "loss") == [(1, 0.5)]


def test_another_server_gets_a_whole_run_and_the_first_one_the_rest(stub: Stub, project: Path, tmp_path: Path) -> None:
    with track("train@alps", section(stub.uri), {"rank": 8}) as tracking:
        tracking.metric("loss", 0.5, 0)
        stub.stop()
    other = Stub(tmp_path / "elsewhere")
    assert [outcome.failed for outcome in sync(section(other.uri))] == [False, False]
    stub.start()
    assert [outcome.failed for outcome in sync(section(stub.uri))] == [False, False]
    for server in (stub, other):
        run = server.named("train@alps")
        assert (run["info"]["status"], run["params"]) == ("FINISHED", {"rank": "8"})
        assert server.history("train@alps", "loss") == [(0, 0.5)]
    other.stop()


def test_what_is_refused_is_reported_each_time_until_it_is_taken(stub: Stub, project: Path) -> None:
    stub.stop()
    offline_stage(stub.uri, "train@alps")
    stub.start()
    stub.refuse = lambda call, body: any(metric["value"] == 0.125 for metric in body.get("metrics", []))
    for _ in range(2):
        outcome = list(sync(section(stub.uri)))[-1]
        assert (outcome.stage, outcome.failed) == ("train@alps", True)
        assert "refused: metric loss at step 1 (INVALID_PARAMETER_VALUE: refused on purpose)" in str(outcome)
    assert stub.history("train@alps", "loss") == [(0, 0), (2, 0.25)]
    assert stub.named("train@alps")["info"]["status"] == "FINISHED", "the rest goes on"
    stub.refuse = lambda call, body: False
    assert [outcome.failed for outcome in sync(section(stub.uri))] == [False]
    assert stub.history("train@alps", "loss") == THREE


def test_a_description_that_somebody_edited_on_the_server_stays(stub: Stub, project: Path) -> None:
    params = section(stub.uri)
    with track("train@alps", params, {}) as tracking:
        tracking._report()
        parent = stub.runs[stub.named("train@alps")["tags"]["mlflow.parentRunId"]]
        parent["tags"]["mlflow.note.content"] = "My own remark"
    close_parent(params)
    assert parent["tags"]["mlflow.note.content"] == "My own remark"
    assert parent["tags"]["stages.ran"] == "train@alps"


def test_metrics_that_were_deleted_here_do_not_hide_new_ones(stub: Stub, project: Path) -> None:
    """`mlflow gc` frees row numbers, and new metrics of another run may get them."""
    import sqlite3

    with track("train@alps", section(stub.uri), {}) as tracking:
        tracking.metrics({"one": 1.0, "two": 2.0, "three": 3.0}, 0)
        tracking._flush()
        tracking._report(last=True)
        assert stub.named("train@alps")["tags"]["morphline.rows"] == "3 3"
        with sqlite3.connect(project / "mlflow.db") as database:
            database.execute("DELETE FROM metrics")
        tracking.metric("four", 4.0, 0)
    assert stub.history("train@alps", "four") == [(0, 4.0)]


def test_a_stage_that_arrives_after_its_state_was_closed_joins_its_parent(stub: Stub, project: Path) -> None:
    """It ran while the server was away, and is brought after the report, in another state."""
    params = section(stub.uri, required=False)
    stub.stop()
    with track("prepare@alps", params, {}):
        pass
    wait_a_moment()
    with track("report", params, {}):
        pass
    close_parent(params)
    (project / "params.yaml").write_text("train: {rank: 4}\n")
    wait_a_moment()
    stub.start()
    with track("train@alps", params, {}):
        assert not [str(outcome) for outcome in sync(params) if outcome.failed]
        parents = [run for run in stub.alive() if "mlflow.parentRunId" not in run["tags"]]
        first, now_running = sorted(parents, key=lambda run: int(run["info"]["start_time"]))
        assert now_running["info"]["status"] == "RUNNING"
    below = [run for run in stub.alive() if run["tags"].get("mlflow.parentRunId") == first["info"]["run_id"]]
    assert sorted(run["info"]["run_name"] for run in below) == ["prepare@alps", "report"]
    assert first["info"]["status"] == "FINISHED"
    assert first["tags"]["stages.ran"] == "prepare@alps, report"
    assert first["tags"]["stages.not_run"] == "train@alps"
    note = first["tags"]["mlflow.note.content"]
    assert "Ran: `prepare@alps`, `report`" in note and "Did not need to run: `train@alps`" in note


@pytest.mark.parametrize("size", [0, 66_000], ids=["no room at all", "none for its changes"])
def test_a_database_on_a_full_disk_is_one_line_that_names_it(stub: Stub, project: Path, size: int) -> None:
    stub.stop()
    offline_stage(stub.uri, "train@alps")
    stub.start()
    book = open_book(project, "morphline")
    for run in book.runs():  # of a process that was killed
        book.client.update_run(run.info.run_id, "RUNNING")
    with full_disk(size), pytest.raises(UserError) as caught:
        list(sync(section(stub.uri)))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"tracking database sqlite:///{project}/mlflow.db: cannot be used ("), line
    assert "Make room there" in line
    assert [outcome.failed for outcome in sync(section(stub.uri))] == [False, False]
    assert stub.history("train@alps", "loss") == THREE
