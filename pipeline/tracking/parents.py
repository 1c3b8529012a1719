"""The runs themselves: one parent for one pipeline state, one child for one stage instance."""

import getpass
import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil
from pydantic import BaseModel, ConfigDict

from pipeline.tracking.legal import LONGEST_TAG, cut
from pipeline.tracking.operations import Run, now
from pipeline.tracking.server import Server, only_one, open_server
from pipeline.tracking.state import PipelineState, workspace

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

STATE, PLACE, PROCESS, IDENTITY = "morphline.state", "morphline.place", "morphline.process", "morphline.id"
NOTE, PARENT = "mlflow.note.content", "mlflow.parentRunId"


class Beginning(BaseModel):
    """All that a stage's run is made of; written down first where the server is away.

    id: of ours, so that a run is not made twice. run: MLflow's ids, once it has given them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    experiment: str
    stage: str
    id: str
    started: int
    tags: dict[str, str]
    state: str
    parent_name: str
    parent_tags: dict[str, str]
    run: Run | None = None


def begin(beginning: Beginning) -> tuple[Server, Run]:
    """Open the server and make the stage's run, and its parent if no stage of this state has.

    Raises what MLflow raises when the server cannot be reached.
    """
    with only_one():
        server = open_server(beginning.uri, beginning.experiment)
        if beginning.run:
            return server, beginning.run
        parent = _open_parent(server, beginning)
        for run in _search(server, f"tags.`{IDENTITY}` = '{beginning.id}'"):
            return server, Run(child=run.info.run_id, parent=parent)
    tags = {**beginning.tags, PARENT: parent, PROCESS: _process(), IDENTITY: beginning.id}
    child = server.client.create_run(server.experiment_id, beginning.started, tags, beginning.stage)
    return server, Run(child=child.info.run_id, parent=parent)


def find_parent(server: Server, state: str) -> "MlflowRun | None":
    """The newest parent of this state that no report has closed."""
    return next(_search(server, f"tags.`{STATE}` = '{state}' and attributes.status != 'FINISHED'"), None)


def children(server: Server, parent: str) -> "list[MlflowRun]":
    return list(_search(server, f"tags.`{PARENT}` = '{parent}'"))


def common_tags(state: PipelineState) -> dict[str, str]:
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": state.commit,
        "mlflow.source.git.branch": state.branch,
        "mlflow.source.git.dirty": "true" if state.edited else "false",
        "dvc.experiment": state.experiment,
    }
    return {key: text for key, text in tags.items() if text}


def describe(state: PipelineState, ran: list[str], unneeded: list[str]) -> str:
    """The parent's description in the dashboard, as Markdown."""
    lines = []
    if state.commit:
        lines.append(f"**{state.subject}** (`{state.commit[:12]}` on `{state.branch}`)")
    if state.experiment:
        lines.append(f"See it again: `dvc exp apply {state.experiment}`, then `dvc repro`")
    elif state.commit and not state.edited:
        lines.append(f"See it again: `git checkout {state.commit[:12]}`, then `dvc repro`")
    if state.edited:
        names = ", ".join(f"`{name}`" for name in state.edited[:12]) + (" and more" if len(state.edited) > 12 else "")
        lines.append(f"Edited since that commit: {names}")
    if ran:
        lines.append("Ran: " + ", ".join(f"`{name}`" for name in ran))
    if unneeded:
        lines.append("Did not need to run: " + ", ".join(f"`{name}`" for name in unneeded))
    return cut("\n\n".join(lines), LONGEST_TAG)


def _open_parent(server: Server, beginning: Beginning) -> str:
    parent = find_parent(server, beginning.state)
    if parent is None:
        _close_left_open(server)
        tags = {**beginning.parent_tags, STATE: beginning.state, PLACE: _place()}
        parent = server.client.create_run(server.experiment_id, beginning.started, tags, beginning.parent_name)
    elif parent.info.status != "RUNNING":  # a stage failed or was stopped; this one carries on from there
        server.client.update_run(parent.info.run_id, status="RUNNING")
    return str(parent.info.run_id)


def _close_left_open(server: Server) -> None:
    """Close this checkout's parents that no report closed: of a single rerun stage, or of a killed machine."""
    for parent in _search(server, f"tags.`{PLACE}` = '{_place()}' and attributes.status = 'RUNNING'"):
        statuses = set()
        for child in children(server, parent.info.run_id):
            status = child.info.status
            if status == "RUNNING" and _died(child):
                server.client.set_terminated(child.info.run_id, "KILLED", now())
                status = "KILLED"
            statuses.add(status)
        if "RUNNING" not in statuses:
            status = next((status for status in ("FAILED", "KILLED") if status in statuses), "FINISHED")
            server.client.set_terminated(parent.info.run_id, status, now())


def _search(server: Server, condition: str) -> "Iterator[MlflowRun]":
    token: str | None = None
    while token != "":
        page = server.client.search_runs(
            [server.experiment_id],
            condition,
            max_results=500,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        yield from page
        token = page.token or ""


def _died(child: "MlflowRun") -> bool:
    """Whether its process is gone; one of another host is taken to live."""
    host, _, pid = child.data.tags.get(PROCESS, "").rpartition(" ")
    return host == socket.gethostname() and not psutil.pid_exists(int(pid))


def _process() -> str:
    return f"{socket.gethostname()} {os.getpid()}"


def _place() -> str:
    return f"{socket.gethostname()} {workspace()}".replace("'", "_")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
