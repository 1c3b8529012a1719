"""`track` for a stage, `close_parent` for the report."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.errors import UserError
from pipeline.params import TrackingSection
from pipeline.tracking.descriptions import NOTE, of_stage, of_state
from pipeline.tracking.legal import LONGEST_TAG, cut, legal_key
from pipeline.tracking.machine import MachineMetrics
from pipeline.tracking.parents import Beginning, close, common_tags, new_process_tag
from pipeline.tracking.sender import Sender
from pipeline.tracking.server import now, only_one, open_server, redacted, tracking_uri, unreachable, why
from pipeline.tracking.state import PipelineState, read_state
from pipeline.tracking.tracker import Tracker

LIBRARIES = ("torch", "diffusers", "peft")

log = logging.getLogger(__name__)


@contextmanager
def track(
    stage: str,
    params: TrackingSection,
    section: Mapping[str, object],
    *,
    datasets: Mapping[str, Path] = {},
    tags: Mapping[str, str] = {},
) -> Iterator[Tracker]:
    """Write down one stage instance, such as `train@alps`, for as long as the block runs.

    section: the stage's own params, nested. datasets: name -> a file or folder that the stage reads. An error in the
    block is written down and raised again.

    Raises:
        UserError: the server cannot be used at the start, and `tracking.required` is true.
    """
    uri = tracking_uri(params)
    sender = Sender(_beginning(stage, params, read_state(), tags), uri)
    try:
        sender.open()
    except Exception as error:
        if params.required:
            raise UserError(unreachable(uri, error)) from None
        sender.keep_from_now(error)
    tracker = Tracker(sender, MachineMetrics(params.system_every) if params.system_every else None)
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


def close_parent(params: TrackingSection, stages_not_run: Sequence[str] | None = None) -> None:
    """Close the parent run of this pipeline state and say in its description what ran and what did not need to.

    What ran are the parent's children; what did not are all others that dvc.lock has a result of, unless
    `stages_not_run` names them. Never raises: a parent that is left open is closed by the next one.
    """
    uri = tracking_uri(params)
    state = read_state()
    try:
        with only_one():
            server = open_server(uri, params.experiment)
            close(server, state, stages_not_run)
    except Exception as error:
        log.warning("The parent run in %s stays open: %s", redacted(uri), why(error))


def _beginning(stage: str, params: TrackingSection, state: PipelineState, tags: Mapping[str, str]) -> Beginning:
    common = common_tags(state)
    own = {
        **common,
        "mlflow.source.name": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "dvc.stage": os.environ.get("DVC_STAGE", stage),
        NOTE: of_stage(state, stage),
        **_versions(),
        **tags,
    }
    parent = {**common, "mlflow.source.name": "dvc repro", NOTE: of_state(state), **_versions()}
    return Beginning(
        experiment=params.experiment,
        stage=stage,
        process=new_process_tag(),
        started=now(),
        tags={legal_key(key): cut(str(text), LONGEST_TAG) for key, text in own.items()},
        state=state.digest,
        parent_name=state.name,
        parent_tags=parent,
        uri=redacted(tracking_uri(params)),
    )


def _versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[f"{library}.version"] = version(library)
        except PackageNotFoundError:
            continue
    return found
