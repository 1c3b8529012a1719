"""Tracking never costs a result: servers that are away, fall silent, refuse, or come back."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.tracking import close_parent, sender, track, tracker
from pipeline.tracking.operations import Metrics
from pipeline.tracking.parents import Beginning
from pipeline.tracking.sender import Sender
from tests.tracking.conftest import section
from tests.tracking.stub import Stub


@pytest.fixture(autouse=True)
def _every_metric_is_sent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "SECONDS", -1.0)


def kept(project: Path) -> list[dict[str, Any]]:
    """The operations of the one file that a stage left."""
    (file,) = (project / ".work/tracking").glob("*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()[1:]]


def kept_losses(project: Path) -> list[tuple[int, float]]:
    rows = [
        row for line in kept(project) if line["kind"] == "metrics" and line["to"] == "child" for row in line["rows"]
    ]
    return [(step, value) for name, value, _, step in rows if name == "loss"]


def test_down_at_the_start_is_a_clear_error(stub: Stub, project: Path) -> None:
    stub.stop()
    with pytest.raises(UserError) as caught, track("train@alps", section(stub.uri), {}):
        pytest.fail("the stage must not begin")
    (problem,) = caught.value.problems
    assert problem.where == f"tracking server {stub.uri}"
    assert problem.found == "cannot be used (Connection refused)"
    assert "MLFLOW_TRACKING_URI" in problem.fix
    assert "tracking.required" in problem.fix
    assert not list((project / ".work").rglob("*.jsonl"))


def test_down_throughout_keeps_everything_for_later(
    stub: Stub, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stub.stop()
    (project / "curves.csv").write_text("step,loss\n")
    with track("train@alps", section(stub.uri, required=False), {"rank": 8}) as tracking:
        for step in range(20):
            tracking.metric("loss", step / 8, step)
        tracking.artifact(project / "curves.csv")
        tracking.picture("dawn", Image.new("RGB", (4, 4)), step=3)
    (project / "curves.csv").unlink()
    assert kept_losses(project) == [(step, step / 8) for step in range(20)]
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "one warning, not one a step"
    assert stub.uri in caplog.text

    stub.start()
    (file,) = (project / ".work/tracking").glob("*.jsonl")
    later = Sender(Beginning.model_validate_json(file.read_text().splitlines()[0]), stub.uri)
    later.close()
    run = stub.named("train@alps")
    assert run["info"]["status"] == "FINISHED"
    assert run["params"] == {"rank": "8"}
    assert stub.history("train@alps", "loss") == [(step, step / 8) for step in range(20)]
    folder = stub.artifacts / run["info"]["run_id"] / "artifacts"
    assert next(stub.artifacts.rglob("curves.csv")).read_text() == "step,loss\n", folder
    assert len(list(stub.artifacts.rglob("dawn+step+3*.png"))) == 1
    assert not [path for path in (project / ".work/tracking").iterdir() if path.name != "lock"]


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
    if back:
        assert stub.history("train@alps", "loss") == everything
        assert stub.named("train@alps")["info"]["status"] == "FINISHED"
        assert not list((project / ".work/tracking").glob("*.jsonl"))
    else:
        assert stub.history("train@alps", "loss") + kept_losses(project) == everything
        assert kept(project)[-1]["kind"] == "end"
        assert len(caplog.records) == 1


def test_a_server_that_comes_back_is_found_before_the_end(
    stub: Stub, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "FIRST_PAUSE", 0.0)
    with track("train@alps", section(stub.uri), {}) as tracking:
        tracking.metric("loss", 0, 0)
        stub.stop()
        tracking.metric("loss", 1, 1)
        stub.start()
        tracking.metric("loss", 2, 2)
        assert stub.history("train@alps", "loss") == [(0, 0), (1, 1), (2, 2)]


def test_a_server_that_falters_while_catching_up_hears_each_number_once(
    stub: Stub, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "FIRST_PAUSE", 0.0)
    with track("train@alps", section(stub.uri), {}) as tracking:
        stub.stop()
        for step in range(10):
            tracking.metric("loss", step, step)
        stub.drop = lambda call, body: any(metric["value"] == 5 for metric in body.get("metrics", []))
        stub.start()
        tracking.metric("loss", 10, 10)
        assert stub.history("train@alps", "loss") == [(step, step) for step in range(5)]
        assert kept_losses(project) == [(step, step) for step in range(5, 11)]
        stub.drop = lambda call, body: False
        tracking.metric("loss", 11, 11)
    assert stub.history("train@alps", "loss") == [(step, step) for step in range(12)]


def test_a_server_that_falls_silent_is_asked_only_now_and_then(stub: Stub, project: Path) -> None:
    with track("train@alps", section(stub.uri), {}) as tracking:
        stub.hang = 1.2  # longer than the test's patience of one second
        before = len(stub.requests)
        for step in range(200):
            tracking.metric("loss", step, step)
        assert len(stub.requests) == before + 1
    assert kept_losses(project) == [(step, step) for step in range(200)]


def test_what_is_refused_does_not_stop_the_rest(stub: Stub, project: Path, caplog: pytest.LogCaptureFixture) -> None:
    stub.refuse = lambda call, body: (
        call == "runs/log-batch" and any(metric["value"] == 13 for metric in body.get("metrics", []))
    )
    with track("train@alps", section(stub.uri), {}) as tracking:
        for step in range(20):
            tracking.metric("loss", step, step)
    assert stub.history("train@alps", "loss") == [(step, step) for step in range(20) if step != 13]
    assert stub.named("train@alps")["info"]["status"] == "FINISHED"
    assert kept_losses(project) == [(13, 13)]
    assert "refused on purpose" in caplog.text


def test_a_run_that_was_made_is_not_made_twice(stub: Stub, project: Path) -> None:
    """Its answer may have been lost: the request timed out, and is made again."""
    stub.lose = lambda call, body: call == "runs/create" and body["run_name"] == "train@alps"
    with track("train@alps", section(stub.uri, required=False), {}) as tracking:
        tracking.metric("loss", 1, 0)
        stub.lose = lambda call, body: False
    assert stub.history("train@alps", "loss") == [(0, 1)]
    assert len([run for run in stub.runs.values() if run["info"]["run_name"] == "train@alps"]) == 1


def test_closing_the_parent_never_raises(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    with track("report", section(stub.uri), {}):
        pass
    stub.stop()
    close_parent(section(stub.uri))
    assert "stays open" in caplog.text


def test_ctrl_c_while_the_server_is_slow_loses_no_numbers(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), track("train@alps", section(stub.uri), {}) as tracking:
        tracking.metric("loss", 0, 0)
        with monkeypatch.context() as patched:
            patched.setattr(Metrics, "send", _interrupted)
            tracking.metric("loss", 1, 1)
    assert sorted(stub.history("train@alps", "loss")) == [(0, 0), (1, 1)]
    assert stub.named("train@alps")["info"]["status"] == "KILLED"


def _interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_passwords_are_not_shown(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = "http://ann:secret@127.0.0.1:9"
    with pytest.raises(UserError) as caught, track("train@alps", section(uri), {}):
        pass
    with track("train@alps", section(uri, required=False), {}) as tracking:
        tracking.metric("loss", 1, 0)
    close_parent(section(uri))
    (file,) = (project / ".work/tracking").glob("*.jsonl")
    for text in (str(caught.value), caplog.text, file.read_text()):
        assert "secret" not in text
    assert "ann:***@" in caplog.text


def test_nonsense_is_not_tracked_but_does_not_raise(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    with track("train@alps", section(stub.uri), {}) as tracking:
        tracking.metric("loss", "no number", 0)  # type: ignore[arg-type]
        tracking.picture("gone", Path("gone.png"), step=1)
    assert stub.named("train@alps")["info"]["status"] == "FINISHED"
    assert caplog.text.count("Not tracked") == 2
