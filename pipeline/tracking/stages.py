"""`track` for a stage, `close_parent` for the report."""

import getpass
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.sections import TrackingSection
from pipeline.state import PipelineState, read_state
from pipeline.tracking.connection import unusable, why
from pipeline.tracking.descriptions import NOTE, STUDIO_ADDRESS, of_stage, of_state
from pipeline.tracking.mirror import Mirror
from pipeline.tracking.names import LONGEST_TAG, cut, legal_key
from pipeline.tracking.runs import begin, close, note_stage
from pipeline.tracking.store import Store, network_place, open_store, server_uri
from pipeline.tracking.tracker import Tracker

log = logging.getLogger(__name__)


@contextmanager
def track(
    stage: str, params: TrackingSection, section: Mapping[str, object],
    *, datasets: Mapping[str, Path] = {}, tags: Mapping[str, str] = {},
) -> Iterator[Tracker]:  # fmt: skip
    """Track one stage instance, such as `train@alps`, for as long as the block runs.

    section: the stage's own params, nested. datasets: name -> a file or folder that the stage reads. An error in the
    block is logged and raised again.

    Raises:
        UserError: the database or the server cannot be used at the start, and `tracking.required` is true.
    """
    with ExitStack() as locks:
        try:
            tracker = _begin(stage, params, tags, locks)
        except UserError as error:
            if params.required:
                raise
            log.warning("Nothing is tracked: %s", error)
            tracker = Tracker(stage)
        tracker.begin(section, datasets)
        try:
            yield tracker
        except BaseException as error:
            if isinstance(error, SystemExit) and not error.code:
                tracker.end("FINISHED")
            else:
                tracker.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", error)
            raise
        tracker.end("FINISHED")


def close_parent(params: TrackingSection) -> None:
    """Close the parent run of this pipeline state and say in its description what ran and what did not need to.

    What ran are the parent's children, and `check`; what did not are all others that dvc.lock has a result of. Never
    raises: a parent that is left open is closed by the next one.
    """
    try:
        store, uri = open_store(params), server_uri(params)
        parent = close(store, read_state())
        if uri and parent:
            Mirror(store, uri).report(parent, last=True)
    except Exception as error:
        log.warning("The parent run stays open: %s", why(error))


def note_ran(stage: str) -> None:
    """For a stage that has no run of its own: note that it ran, where DVC ran it."""
    if "DVC_STAGE" in os.environ:
        note_stage(read_state(), stage)


def check_ran(params: TrackingSection) -> str:
    """For `check`: note that it ran; and a warning if the database is no safe place for runs."""
    note_ran("check")
    kind = network_place(params)
    fix = "set MORPHLINE_TRACKING_FOLDER to a folder on a local disk (in the environment, on each machine)"
    return f"the MLflow database lies on a network file system ({kind}), which may damage it: {fix}" if kind else ""


def _begin(stage: str, params: TrackingSection, tags: Mapping[str, str], locks: ExitStack) -> Tracker:
    store, uri, state = open_store(params), server_uri(params), read_state()
    mirror = Mirror(store, uri) if uri else None
    try:
        if mirror:
            mirror.open(params.experiment)
    except Exception as error:
        if params.required:
            raise UserError(unusable(str(uri), error)) from None
        mirror.pause(error)  # type: ignore[union-attr]
    common = _tags(state)
    note = of_stage(state, stage, os.environ.get(STUDIO_ADDRESS, ""))
    own = {**common, "dvc.stage": os.environ.get("DVC_STAGE", stage), NOTE: note, **tags}
    own = {legal_key(key): cut(str(text), LONGEST_TAG) for key, text in own.items()}
    try:
        child, parent = begin(store, state, stage, own, {**common, NOTE: of_state(state)}, locks)
    except Exception as error:
        raise UserError(unusable(f"sqlite:///{store.database}", error)) from None
    tracker = Tracker(stage, store, child, parent, mirror)
    if params.system_every:
        tracker.stop = _watch_system(store, child, params.system_every).finish
    return tracker


def _tags(state: PipelineState) -> dict[str, str]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = ""
    tags = {
        "mlflow.user": user,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "mlflow.source.git.commit": state.commit,
        "mlflow.source.git.branch": state.branch,
        "mlflow.source.git.dirty": "true" if state.edited else "false",
        "dvc.experiment": state.experiment,
        **{f"{library}.version": version(library) for library in ("torch", "diffusers", "peft")},
    }
    return {key: text for key, text in tags.items() if text}


def _watch_system(store: Store, run_id: str, every: float) -> Any:
    """MLflow's own watch over CPU, memory, disks, network and GPUs; a failure of it costs nothing else."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    class Monitor(SystemMetricsMonitor):  # type: ignore[misc]
        def monitor(self) -> None:
            try:
                super().monitor()
            except Exception as error:
                log.warning("The machine is not watched any more: %s: %s", type(error).__name__, error)

    monitor = Monitor(run_id, sampling_interval=every, tracking_uri=f"sqlite:///{store.database}")
    monitor.start()
    return monitor
