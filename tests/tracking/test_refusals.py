"""Servers that talk nonsense, refuse, or hear and do not answer: what is good arrives once all the same."""

import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.tracking import connection, sync, track
from tests.tracking.conftest import losses, open_book, section
from tests.tracking.stub import Stub

pytestmark = pytest.mark.usefixtures("at_once")


# By what is wrong with them: the status, the parts of the body, and the seconds between these.
ANSWERS: dict[str, tuple[int, list[bytes], float]] = {
    "error 500": (500, [b"<html>out of order</html>"], 0),
    "garbage": (200, [b"\x00\xff<html>sign in"], 0),
    "empty JSON": (200, [b"{}"], 0),
    "no experiment": (200, [b'{"experiment": null}'], 0),
    "other JSON": (200, [b'{"runs": [{"info": {"run_id": 7}}, 3], "experiment": [], "run": "x"}'], 0),
    "endless": (200, [b"x" * 65536] * 4000, 0),
    "dripping": (200, [b" "] * 400, 0.05),
    "dripping headers": (0, [b"HTTP/1.1 200 OK\r\nX-Slow: ", *[b"x"] * 400], 0.05),  # no read of which waits long
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_server_that_is_out_of_order_costs_little_and_loses_nothing(
    stub: Stub, project: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    status, parts, pause = ANSWERS[answer]

    def speak(handler: BaseHTTPRequestHandler) -> None:
        if status:
            handler.send_response(status)
            handler.end_headers()
        for part in parts:
            try:
                handler.wfile.write(part)
            except OSError:
                return  # they have hung up
            time.sleep(pause)

    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.5)
    params = section(stub.uri)
    with track("train@alps", params, {"rank": 8}) as tracking:
        tracking.metric("loss", 0, 0)
        stub.speak = speak
        started = time.monotonic()
        for step in range(1, 50):
            tracking.metric("loss", step, step)
        assert time.monotonic() - started < 8
    assert losses(project) == [(step, step) for step in range(50)]
    started = time.monotonic()
    with pytest.raises(UserError):
        list(sync(params))
    with pytest.raises(UserError), track("sample@alps", params, {}):
        pytest.fail("the stage must not begin")
    assert time.monotonic() - started < 8
    stub.speak = None
    assert [outcome.failed for outcome in sync(params)] == [False, False]
    assert stub.history("train@alps", "loss") == [(step, step) for step in range(50)]
    assert stub.named("train@alps")["params"] == {"rank": "8"} and len(stub.alive()) == 2


def test_what_is_refused_does_not_stop_the_rest(stub: Stub, project: Path, caplog: pytest.LogCaptureFixture) -> None:
    stub.refuse = lambda call, body: (
        call == "runs/log-batch"
        and (
            any(metric["value"] == 13 for metric in body.get("metrics", []))
            or any(param["key"] == "bad" for param in body.get("params", []))
            or any(tag["key"] == "bad tag" for tag in body.get("tags", []))
        )
    )
    with track(
        "train@alps", section(stub.uri), {"bad": 1, "good": 2}, tags={"bad tag": "x", "good tag": "y"}
    ) as tracking:
        for step in range(20):
            tracking.metric("loss", step, step)
    run = stub.named("train@alps")
    assert stub.history("train@alps", "loss") == [(step, step) for step in range(20) if step != 13]
    assert (run["info"]["status"], run["params"]) == ("FINISHED", {"good": "2"})
    assert run["tags"]["good tag"] == "y" and "bad tag" not in run["tags"]
    assert losses(project) == [(step, step) for step in range(20)]
    for what in ("metric loss at step 13", "param bad", "tag bad tag"):
        assert caplog.text.count(f"refuses {what}: INVALID_PARAMETER_VALUE: refused on purpose") == 1, "said once"


def test_a_server_that_refuses_everything_is_not_asked_for_each_thing(stub: Stub, project: Path) -> None:
    with track("train@alps", section(stub.uri), {}) as tracking:
        stub.refuse = lambda call, body: call == "runs/log-batch"
        for step in range(1000):
            tracking._rows[tracking._child].append(_metric(step))
        before = len(stub.requests)
        tracking.metric("loss", 0, 1000)
        assert len(stub.requests) - before < 200
    assert len(losses(project)) == 1001


def _metric(step: int) -> object:
    from mlflow.entities import Metric

    return Metric("loss", 0.0, 1, step)


def test_a_run_that_was_made_is_not_made_twice(stub: Stub, project: Path) -> None:
    """Its answer may have been lost: the request timed out, and is made again."""
    stub.lose = lambda call, body: call == "runs/create" and body["run_name"] == "train@alps"
    with track("train@alps", section(stub.uri, required=False), {}) as tracking:
        tracking.metric("loss", 1, 0)
        stub.lose = lambda call, body: False
    assert stub.history("train@alps", "loss") == [(0, 1)]
    assert len([run for run in stub.runs.values() if run["info"]["run_name"] == "train@alps"]) == 1


def test_a_run_that_arrives_late_and_so_twice_goes_again(stub: Stub, project: Path) -> None:
    """It was looked for before the server had finished with the request that timed out."""
    with track("train@alps", section(stub.uri), {}) as tracking:
        tracking.metric("loss", 1, 0)
        late = stub._create({"run_name": "train@alps", "experiment_id": "1", "start_time": 1, "tags": [
            {"key": "morphline.run", "value": tracking._child}]})  # fmt: skip
    assert stub.history("train@alps", "loss") == [(0, 1)]
    assert late["info"]["lifecycle_stage"] == "deleted"


def test_a_run_that_somebody_deleted_on_the_server_stays_deleted(stub: Stub, project: Path) -> None:
    params = section(stub.uri)
    with track("train@alps", params, {}):
        pass
    stub.named("train@alps")["info"]["lifecycle_stage"] = "deleted"
    here = open_book(project, "morphline")
    here.client.set_tag(here.only("train@alps").info.run_id, "note", "something that the server lacks")
    assert list(sync(params)) == [] and len(stub.runs) == 2
