"""`morphline track sync`: what was kept arrives once, whenever and however often it is sent."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.tracking import close_parent, dashboard_command, sync, track
from pipeline.tracking.operations import End, Metrics
from pipeline.tracking.runs import _beginning
from pipeline.tracking.sender import Sender
from pipeline.tracking.state import read_state
from tests.project import tiny_params
from tests.tracking.conftest import Book, section, wait_a_moment
from tests.tracking.stub import Stub


def kept(project: Path) -> list[str]:
    return sorted(path.name for path in (project / ".work/tracking").iterdir() if path.name != "lock")


def offline_stage(uri: str, name: str, steps: int = 3, experiment: str = "morphline") -> None:
    params = section(uri, required=False, experiment=experiment)
    with track(name, params, {"caption": "a\u2028hill"}) as tracking:
        for step in range(steps):
            tracking.metric("loss", step / 8, step)


def test_what_was_kept_is_sent_once(stub: Stub, project: Path) -> None:
    stub.stop()
    offline_stage(stub.uri, "train@alps")
    offline_stage(stub.uri, "morph@alps")
    stub.start()
    first, second = sync(section(stub.uri))
    assert (str(first), first.failed) == ("train@alps: 4 operations sent", False)
    assert (second.stage, second.sent, second.left) == ("morph@alps", 4, 0)
    for name in ("train@alps", "morph@alps"):
        run = stub.named(name)
        assert (run["info"]["status"], run["params"]) == ("FINISHED", {"caption": "a\u2028hill"})
        assert stub.history(name, "loss") == [(0, 0), (1, 0.125), (2, 0.25)]
    assert len(stub.runs) == 3, "one parent for both"
    assert kept(project) == []
    requests = len(stub.requests)
    assert list(sync(section(stub.uri))) == []
    assert len(stub.requests) == requests


def test_a_server_that_is_still_away_is_told_and_nothing_is_lost(stub: Stub, project: Path) -> None:
    stub.stop()
    offline_stage(stub.uri, "train@alps")
    before = {path: path.read_bytes() for path in (project / ".work/tracking").glob("*.jsonl")}
    with pytest.raises(UserError) as caught:
        list(sync(section(stub.uri)))
    (problem,) = caught.value.problems
    assert problem.found == "cannot be used (Connection refused); what is kept stays"
    assert "morphline track sync" in problem.fix
    assert {path: path.read_bytes() for path in (project / ".work/tracking").glob("*.jsonl")} == before


def test_a_server_that_goes_away_again_gets_the_rest_later(stub: Stub, project: Path) -> None:
    stub.stop()
    offline_stage(stub.uri, "train@alps", steps=3)
    stub.start()
    stub.drop = lambda call, body: bool(body.get("metrics"))
    (outcome,) = sync(section(stub.uri))
    assert (outcome.sent, outcome.left, outcome.failed) == (2, 2, True), "params of the run and of its parent"
    assert outcome.said
    stub.drop = lambda call, body: False
    (outcome,) = sync(section(stub.uri))
    assert (outcome.sent, outcome.left, outcome.failed) == (2, 0, False)
    assert stub.history("train@alps", "loss") == [(0, 0), (1, 0.125), (2, 0.25)]
    assert len(stub.runs) == 2


def test_a_stage_at_work_sends_its_own(stub: Stub, project: Path) -> None:
    with track("train@alps", section(stub.uri), {}) as tracking:
        stub.stop()
        tracking.artifact(project / "params.yaml")
        assert kept(project)
        stub.start()
        (outcome,) = sync(section(stub.uri))
        assert (outcome.sent, outcome.left, outcome.failed) == (0, 1, False)
        assert "left to the process that is at work on it" in str(outcome)
        assert stub.named("train@alps")["info"]["status"] == "RUNNING"
    assert stub.named("train@alps")["info"]["status"] == "FINISHED"
    assert kept(project) == []


def test_two_at_once_send_each_number_once(stub: Stub, project: Path) -> None:
    stub.stop()
    for name in ("train@alps", "train@woodcut", "morph@alps"):
        offline_stage(stub.uri, name)
    stub.start()
    sent: list[int] = []
    both = [
        threading.Thread(target=lambda: sent.extend(outcome.sent for outcome in sync(section(stub.uri))))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sum(sent) == 3 * 4
    for name in ("train@alps", "train@woodcut", "morph@alps"):
        assert stub.history(name, "loss") == [(0, 0), (1, 0.125), (2, 0.25)]
    assert kept(project) == []


def test_a_stage_that_was_killed_is_no_longer_running(stub: Stub, project: Path) -> None:
    sender = Sender(_beginning("train@alps", section(stub.uri), read_state(), {}), stub.uri)
    sender.open()
    sender.keep(Metrics(rows=(("loss", 0.5, 1, 0),)))
    with sender.kept.open("a") as file:
        file.write('{"kind":"metrics","to":"child","rows":[["loss",0.2')  # killed in the midst of a line
    sender.release()
    (outcome,) = sync(section(stub.uri))
    assert (outcome.sent, outcome.left, outcome.failed) == (2, 0, True), "the number and the end"
    assert "damaged line" in outcome.said
    assert stub.named("train@alps")["info"]["status"] == "KILLED"
    assert stub.history("train@alps", "loss") == [(0, 0.5)]
    assert list((project / ".work/tracking").glob("*.refused.jsonl"))


def test_a_run_of_another_server_waits_for_that_server(stub: Stub, project: Path, tmp_path: Path) -> None:
    with track("train@alps", section(stub.uri), {}):
        stub.stop()
    other = Stub(tmp_path / "elsewhere")
    (outcome,) = sync(section(other.uri))
    assert (outcome.left, outcome.failed) == (1, True)
    assert outcome.said == f"its run was begun on {stub.uri}, and is not on this one"
    assert not other.runs and not other.experiments, "nothing is made there"
    other.stop()
    stub.start()
    assert [outcome.failed for outcome in sync(section(stub.uri))] == [False]
    assert stub.named("train@alps")["info"]["status"] == "FINISHED"


def test_what_is_refused_is_said_and_kept_apart(stub: Stub, project: Path) -> None:
    stub.stop()
    offline_stage(stub.uri, "train@alps")
    stub.start()
    stub.refuse = lambda call, body: bool(body.get("metrics"))
    (outcome,) = sync(section(stub.uri))
    assert (outcome.sent, outcome.left, outcome.failed) == (3, 0, True)
    assert "1 refused by it" in outcome.said and "refused on purpose" in outcome.said
    (file,) = (project / ".work/tracking").glob("*.jsonl")
    assert file.name.endswith(".refused.jsonl") and '"loss"' in file.read_text(encoding="utf-8")


def test_a_stage_of_a_closed_state_joins_its_parent(book: Book, project: Path) -> None:
    """It ran offline (say, on another machine) before the report, and is heard of after it, in another state."""
    late = Sender(_beginning("prepare@alps", book.params, read_state(), {}), str(book.params.uri))
    late.keep(End(status="FINISHED", stamp=late.beginning.started + 1))
    late.release()
    wait_a_moment()
    with track("report", book.params, {}):
        pass
    close_parent(book.params)
    (closed,) = book.parents()
    (project / "params.yaml").write_text("train: {rank: 4}\n")
    wait_a_moment()
    with track("train@alps", book.params, {}):
        assert [outcome.failed for outcome in sync(book.params)] == [False]
        first, now_running = book.parents()
        assert first.info.run_id == closed.info.run_id
        assert now_running.info.status == "RUNNING" and "morphline.open" in now_running.data.tags
    assert [run.info.run_name for run in book.children(first)] == ["prepare@alps", "report"]
    assert first.info.status == "FINISHED"
    assert first.info.end_time == book.only("report").info.end_time, "it did not take until today"
    assert first.data.tags["stages.ran"] == "prepare@alps, report"
    assert first.data.tags["stages.not_run"] == "train@alps"
    note = first.data.tags["mlflow.note.content"]
    assert "Ran: `prepare@alps`, `report`" in note and "Did not need to run: `train@alps`" in note


class Mlflow:
    """`mlflow server` on loopback, as `morphline ui` starts it, to be killed and started again."""

    def __init__(self, database: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = dashboard_command(section(database), self.port)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(self.command, start_new_session=True, stdout=quiet, stderr=quiet)
        for _ in range(1200):
            try:
                with urlopen(f"{self.uri}/health", timeout=5):
                    return
            except (URLError, OSError):
                assert self.process.poll() is None, "mlflow server has ended"
                time.sleep(0.1)
        pytest.fail("mlflow server does not start")

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


@pytest.fixture
def mlflow_server(project: Path, database: str, tmp_path: Path) -> Iterator[Mlflow]:
    copy = tmp_path / "server/mlflow.db"
    copy.parent.mkdir()
    copy.write_bytes(Path(database.removeprefix("sqlite:///")).read_bytes())
    server = Mlflow(f"sqlite:///{copy}")
    yield server
    server.kill()


def test_a_real_server_down_at_the_start_midway_and_at_the_end(
    mlflow_server: Mlflow, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    uri, runner = mlflow_server.uri, CliRunner()
    params = section(uri, experiment="sync")  # other tests' runs are on that server too
    (project / "params.yaml").write_text(
        tiny_params({"tracking.uri": uri, "tracking.experiment": "sync", "tracking.system_every": "null"})
    )
    offline_stage(uri, "prepare@alps", experiment="sync")
    answer = runner.invoke(app, ["track", "sync"])
    assert answer.exit_code == 1
    assert answer.stdout == f"Runs kept in .work/tracking: 1, to be sent to {uri}\n"
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
    mlflow_server.start()
    answer = runner.invoke(app, ["track", "sync"])
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.splitlines()[0] == f"Runs kept in .work/tracking: 3, to be sent to {uri}"
    assert sorted(answer.stdout.splitlines()[1:]) == [
        "  prepare@alps: 4 operations sent",
        "  sample@alps: 1 operation sent",
        "  train@alps: 2 operations sent",
    ]
    answer = runner.invoke(app, ["track", "sync"])
    assert (answer.exit_code, answer.stdout) == (0, f"Runs kept in .work/tracking: 0, to be sent to {uri}\n")

    client = MlflowClient(uri)
    runs = {run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("sync").experiment_id])}

    def losses(name: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in client.get_metric_history(runs[name].info.run_id, "loss")]

    assert losses("prepare@alps") == [(0, 0), (1, 0.125), (2, 0.25)]
    assert losses("train@alps") == [(step, step / 8) for step in range(50)]
    assert losses("sample@alps") == [(0, 0.5)]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert len(runs) == 4, "three stages of one parent"
