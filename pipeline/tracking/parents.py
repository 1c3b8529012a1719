"""The runs themselves: one parent for one pipeline state, one child for one stage instance.

A parent is open from its first stage until the report closes it, also while no stage of it runs; MLflow's status of it
is that of its last stage. So a state that failed is carried on in the same parent, a finished one that is run again
(`dvc repro -f`) gets a new parent, and one that no report followed (a single stage) is closed when another begins.
"""

import getpass
import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from pipeline.tracking.descriptions import NOTE, of_parent
from pipeline.tracking.legal import LONGEST_TAG, cut
from pipeline.tracking.server import Run, Server, now, only_one, open_server
from pipeline.tracking.state import PipelineState, locked_stages, workspace

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

OPEN, STATE, PLACE, PROCESS = "morphline.open", "morphline.state", "morphline.place", "morphline.process"
RAN, NOT_RUN = "stages.ran", "stages.not_run"
PARENT = "mlflow.parentRunId"


class Beginning(BaseModel):
    """All that a stage's run is made of; written down first where the server is away.

    process: host, process id and some letters, so that a run is not made twice and a dead one is known. started:
    milliseconds since 1970. state: the digest of the pipeline state. uri: where it was to be written down, without a
    password. run: MLflow's ids there, once it has given them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: str
    stage: str
    process: str
    started: int
    tags: dict[str, str]
    state: str
    parent_name: str
    parent_tags: dict[str, str]
    uri: str = ""
    run: Run | None = None


def begin(beginning: Beginning, uri: str, late: bool = False) -> tuple[Server, Run]:
    """Open the server and make the stage's run, and its parent if no stage of this state has.

    late: the stage is over. Its parent may be closed, and what is open now stays open.
    Raises what MLflow raises when the server cannot be reached.
    """
    if beginning.run:
        return open_server(uri, beginning.experiment), beginning.run
    with only_one():
        server = open_server(uri, beginning.experiment)
        for run in _search(server, f"tags.`{PROCESS}` = '{beginning.process}'"):
            return server, Run(child=run.info.run_id, parent=run.data.tags[PARENT])
        parent = _late_parent(server, beginning) if late else _open_parent(server, beginning)
        tags = {**beginning.tags, PARENT: parent, PROCESS: beginning.process}
        child = server.client.create_run(server.experiment_id, beginning.started, tags, beginning.stage)
        return server, Run(child=child.info.run_id, parent=parent)


def close(server: Server, state: PipelineState, not_run: Sequence[str] | None) -> None:
    """Close the open parent of a state, if there is one, and describe it. See `close_parent`."""
    parent = _find_open(server, state.digest)
    if parent is None:
        return
    run_id = parent.info.run_id
    last = _last_runs(server, run_id)
    unneeded = [name for name in locked_stages() if name not in last] if not_run is None else list(not_run)
    _set_stages(server, run_id, list(last), unneeded)
    retell(server, run_id)
    server.client.delete_tag(run_id, OPEN)
    server.client.set_terminated(run_id, _worst({run.info.status for run in last.values()}), now())


def retell(server: Server, parent: str) -> None:
    """Bring a parent's description up to date with its stages: their pictures, what ran and what did not need to."""
    tags = server.client.get_run(parent).data.tags
    last = {name: run.data.tags.get(NOTE, "") for name, run in _last_runs(server, parent).items()}
    unneeded = [name for name in tags.get(NOT_RUN, "").split(", ") if name and name not in last]
    server.client.set_tag(parent, NOTE, of_parent(tags.get(NOTE, ""), last, unneeded))


def settle(server: Server, parent: str) -> None:
    """What news of stages that were over long ago change in their parent. Closes it if the report is among them."""
    tags = server.client.get_run(parent).data.tags
    last = _last_runs(server, parent)
    statuses = {run.info.status for run in last.values()}
    if OPEN not in tags or "report" in last:
        unneeded = [name for name in tags.get(NOT_RUN, "").split(", ") if name and name not in last]
        _set_stages(server, parent, list(last), unneeded)
        if OPEN in tags:
            server.client.delete_tag(parent, OPEN)
    retell(server, parent)
    if "RUNNING" in statuses:
        server.client.update_run(parent, status="RUNNING")
    else:
        server.client.set_terminated(parent, _worst(statuses), max(run.info.end_time or 0 for run in last.values()))


def new_process_tag() -> str:
    """Names this process, and one run of it."""
    return f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex[:8]}"


def common_tags(state: PipelineState) -> dict[str, str]:
    """What parent and children carry: who, and the state of the code."""
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": state.commit,
        "mlflow.source.git.branch": state.branch,
        "mlflow.source.git.dirty": "true" if state.edited else "false",
        "dvc.experiment": state.experiment,
    }
    return {key: text for key, text in tags.items() if text}


def _open_parent(server: Server, beginning: Beginning) -> str:
    parent = _find_open(server, beginning.state)
    if parent is None:
        for other in _search(server, f"tags.`{PLACE}` = '{_place()}' and tags.`{OPEN}` != ''"):
            _close_abandoned(server, other)
        return _new_parent(server, beginning)
    if parent.info.status != "RUNNING":
        server.client.update_run(parent.info.run_id, status="RUNNING")
    else:  # another stage runs beside this one, or was killed without a chance to say so
        _bury(server, _children(server, parent.info.run_id))
    return str(parent.info.run_id)


def _late_parent(server: Server, beginning: Beginning) -> str:
    """The last parent of that state that began before the stage did, else the first after it, else a new one."""
    found = list(_search(server, f"tags.`{STATE}` = '{beginning.state}'"))
    before = [run for run in found if run.info.start_time <= beginning.started]
    if found:
        return str((before[0] if before else found[-1]).info.run_id)
    return _new_parent(server, beginning)


def _new_parent(server: Server, beginning: Beginning) -> str:
    tags = {**beginning.parent_tags, OPEN: beginning.state, STATE: beginning.state, PLACE: _place()}
    parent = server.client.create_run(server.experiment_id, beginning.started, tags, beginning.parent_name)
    return str(parent.info.run_id)


def _find_open(server: Server, state: str) -> "MlflowRun | None":
    return next(_search(server, f"tags.`{OPEN}` = '{state}'"), None)


def _children(server: Server, parent: str) -> "list[MlflowRun]":
    return list(_search(server, f"tags.`{PARENT}` = '{parent}'"))


def _last_runs(server: Server, parent: str) -> "dict[str, MlflowRun]":
    """The newest run of each stage, in the order in which they ran first."""
    return {run.info.run_name: run for run in reversed(_children(server, parent))}


def _set_stages(server: Server, parent: str, ran: Sequence[str], unneeded: Sequence[str]) -> None:
    server.client.set_tag(parent, RAN, cut(", ".join(ran), LONGEST_TAG))
    server.client.set_tag(parent, NOT_RUN, cut(", ".join(unneeded), LONGEST_TAG))


def _close_abandoned(server: Server, parent: "MlflowRun") -> None:
    statuses = _bury(server, _children(server, parent.info.run_id))
    if "RUNNING" in statuses:
        return
    server.client.delete_tag(parent.info.run_id, OPEN)
    if parent.info.status == "RUNNING":
        server.client.set_terminated(parent.info.run_id, _worst(statuses), now())


def _bury(server: Server, runs: "list[MlflowRun]") -> set[str]:
    """Mark the runs whose process is gone as killed; returns the statuses of all."""
    statuses = set()
    for run in runs:
        status = run.info.status
        if status == "RUNNING" and _died(run):
            status = "KILLED"
            server.client.set_terminated(run.info.run_id, status, now())
        statuses.add(status)
    return statuses


def _worst(statuses: set[str]) -> str:
    return next((status for status in ("FAILED", "KILLED") if status in statuses), "FINISHED")


def _search(server: Server, condition: str) -> "Iterator[MlflowRun]":
    """Newest first."""
    token: str | None = None
    while token != "":
        page = server.client.search_runs(
            [server.experiment_id],
            condition,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        yield from page
        token = page.token or ""


def _died(run: "MlflowRun") -> bool:
    """Whether its process is gone; what cannot be known is taken to live."""
    host, _, rest = run.data.tags.get(PROCESS, "").partition(" ")
    pid = rest.partition(" ")[0]
    if host != socket.gethostname() or os.name == "nt" or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)  # signal 0 only asks whether the process is there
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _place() -> str:
    return f"{socket.gethostname()} {workspace()}".replace("'", "_")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
