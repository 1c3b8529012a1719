"""`track` for a stage, `close_parent` for the report."""

import hashlib
import logging
import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.errors import UserError
from pipeline.params import TrackingSection
from pipeline.tracking.legal import LONGEST_TAG, cut, flatten, legal_key
from pipeline.tracking.operations import now
from pipeline.tracking.parents import NOTE, Beginning, children, common_tags, describe, find_parent
from pipeline.tracking.sender import Sender
from pipeline.tracking.server import first_line, only_one, open_server, tracking_uri, unreachable
from pipeline.tracking.state import PipelineState, dataset_digest, locked_stages, read_state, workspace
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

    section: the stage's own params, nested. datasets: name -> a file or folder that the stage reads. An error in the block
    is written down and raised again.

    Raises:
        UserError: the server cannot be used at the start, and `tracking.required` is true.
    """
    state = read_state()
    sender = Sender(_beginning(stage, params, state, tags))
    try:
        sender.open()
    except Exception as error:  # noqa: BLE001
        if params.required:
            raise UserError(unreachable(sender.beginning.uri, error)) from None
        sender.keep_from_now(error)
    tracker = Tracker(sender)
    values = flatten(section)
    tracker.params(values, {legal_key(f"{legal_key(stage)}.{key}"): value for key, value in values.items()})
    for name, path in datasets.items():
        if path.exists():
            source = os.path.relpath(path.resolve(), workspace().resolve())
            tracker.dataset(name, dataset_digest(path), Path(source).as_posix())
    try:
        yield tracker
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt)
        clean = isinstance(error, SystemExit) and not error.code
        if not clean:
            tracker.set_tags({"error": str(error) or type(error).__name__, "error.type": type(error).__name__})
        tracker.end(stage, "KILLED" if killed else "FINISHED" if clean else "FAILED")
        raise
    tracker.end(stage, "FINISHED")


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
            parent = find_parent(server, _key(state))
            if parent is None:
                return
            run_id = parent.info.run_id
            runs = sorted(children(server, run_id), key=lambda run: run.info.start_time)
            ran = list(dict.fromkeys(run.info.run_name for run in runs))
            unneeded = stages_not_run
            if unneeded is None:
                unneeded = [name for name in locked_stages() if name not in ran]
            server.client.set_tag(run_id, NOTE, describe(state, ran, list(unneeded)))
            server.client.set_tag(run_id, "stages.ran", cut(", ".join(ran), LONGEST_TAG))
            server.client.set_tag(run_id, "stages.not_run", cut(", ".join(unneeded), LONGEST_TAG))
            server.client.set_terminated(run_id, "FINISHED", now())
    except Exception as error:  # noqa: BLE001
        log.warning("The parent run stays open, %s does not answer: %s", uri, first_line(error))


def _beginning(stage: str, params: TrackingSection, state: PipelineState, tags: Mapping[str, str]) -> Beginning:
    common = common_tags(state)
    own = {
        **common,
        "mlflow.source.name": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "dvc.stage": os.environ.get("DVC_STAGE", stage),
        NOTE: f"Run it again: `dvc repro --force --single-item {stage}`",
        **_versions(),
        **tags,
    }
    parent = {**common, "mlflow.source.name": "dvc repro", NOTE: describe(state, [], []), **_versions()}
    return Beginning(
        uri=tracking_uri(params),
        experiment=params.experiment,
        stage=stage,
        id=uuid.uuid4().hex,
        started=now(),
        tags={legal_key(key): cut(str(text), LONGEST_TAG) for key, text in own.items()},
        state=_key(state),
        parent_name=state.name,
        parent_tags=parent,
    )


def _key(state: PipelineState) -> str:
    return hashlib.sha256(state.key.encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[f"{library}.version"] = version(library)
        except PackageNotFoundError:
            continue
    return found
