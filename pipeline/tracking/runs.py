"""The runs in the project's database: one parent for one pipeline state, one child for one stage instance.

A parent is open from its first stage until the report closes it, also while no stage of it runs; MLflow's status of it
is that of its last stage. So a state that failed is carried on in the same parent, a finished one that is run again
(`dvc repro -f`) gets a new parent, and one that no report followed (a single stage) is closed when another begins.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.outputs import atomic_file
from pipeline.params import Params, load_params
from pipeline.state import PipelineState, dataset_digest, locked_stages, place_of, workspace
from pipeline.tracking.connection import now
from pipeline.tracking.descriptions import NOTE, of_parent
from pipeline.tracking.names import LONGEST_TAG, cut, flatten, parent_param
from pipeline.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

OPEN, STATE, PLACE, PARENT = "morphline.open", "morphline.state", "morphline.place", "mlflow.parentRunId"
RAN, NOT_RUN = "stages.ran", "stages.not_run"


def begin(
    store: Store, state: PipelineState, stage: str, tags: Mapping[str, str], above: Mapping[str, str], locks: ExitStack
) -> tuple[str, str]:
    """Make a stage's run, and its parent if no stage of this state has; the ids of both.

    above: the parent's tags. locks: takes the lock of the stage's run, which says that its process is at work.
    """
    with store.lock("database"):
        parent = open_parent(store, state.digest, state.name, above, params_of)
        close_dead(store, parent)
        store.client.update_run(parent, status="RUNNING")
        own = {**tags, PARENT: parent, STATE: state.digest}
        child = str(store.client.create_run(store.experiment_id, now(), own, stage).info.run_id)
        locks.enter_context(store.lock(child))
    return child, parent


def finish(store: Store, child: str, parent: str, status: str) -> None:
    """The stage is over, and its parent rests until another stage starts, unless one is at work."""
    with store.lock("database"):
        store.client.set_terminated(child, status, now())
        rest(store, parent, status)


def rest(store: Store, parent: str, status: str) -> None:
    """A stage of a parent is over: describe it anew, and let it rest unless another stage is at work."""
    last = _last_runs(store, parent)
    if all(run.info.status != "RUNNING" for run in last.values()):
        store.client.set_terminated(parent, status, now())
    _describe(store, parent, list(last), [])


def open_parent(
    store: Store, digest: str, name: str, tags: Mapping[str, str], params: Callable[[Params], Mapping[str, str]] | None
) -> str:
    """The open parent of a state, made if there is none; its id.

    tags: of a new one. params: what it logs of params.yaml; None: nothing.
    """
    if found := store.search(f"tags.`{OPEN}` = '{digest}'"):
        return str(found[0].info.run_id)
    place = os.path.relpath(workspace(), store.database.parent).replace("'", "_")
    for other in store.search(f"tags.`{PLACE}` = '{place}' and tags.`{OPEN}` != ''"):
        if "RUNNING" not in close_dead(store, other.info.run_id):
            store.client.delete_tag(other.info.run_id, OPEN)
    tags = {**tags, OPEN: digest, STATE: digest, PLACE: place, "mlflow.source.name": "dvc repro"}
    run_id = str(store.client.create_run(store.experiment_id, now(), tags, name).info.run_id)
    if params and (read := _read_params()):
        store.log_params(run_id, params(read))
    return run_id


def close(store: Store, state: PipelineState) -> str | None:
    """Close the open parent of a state, if there is one, with the datasets and pictures of all stages; its id."""
    with store.lock("database"):
        found = store.search(f"tags.`{OPEN}` = '{state.digest}'")
        if not found:
            return None
        parent, noted = str(found[0].info.run_id), _noted(state)
        if params := _read_params():
            _complete(store, parent, params)
        last = _last_runs(store, parent)
        without_run = noted.read_text(encoding="utf-8").splitlines() if noted.exists() else []
        ran = [*dict.fromkeys(without_run), *last]
        unneeded = [name for name in locked_stages() if name not in ran]
        for tag, names in ((RAN, ran), (NOT_RUN, unneeded)):
            store.client.set_tag(parent, tag, cut(", ".join(names), LONGEST_TAG))
        _describe(store, parent, ran, unneeded)
        store.client.set_terminated(parent, _worst({run.info.status for run in last.values()}), now())
        store.client.delete_tag(parent, OPEN)
        noted.unlink(missing_ok=True)
    return parent


def close_dead(store: Store, parent: str) -> set[str]:
    """Mark the runs of a parent whose process is gone as killed when they wrote last; the statuses of all."""
    statuses = set()
    for run in store.search(f"tags.`{PARENT}` = '{parent}'"):
        status = run.info.status
        if status == "RUNNING":
            with store.lock(run.info.run_id, wait=0) as locked:
                if locked:
                    status, times = "KILLED", [metric.timestamp for metric in run.data._metric_objs]
                    store.client.set_terminated(run.info.run_id, status, max([run.info.start_time, *times]))
        statuses.add(status)
    if store.client.get_run(parent).info.status == "RUNNING" and "RUNNING" not in statuses:
        store.client.set_terminated(parent, _worst(statuses), now())
    return statuses


def log_dataset(store: Store, run_id: str, name: str, path: Path) -> None:
    """A dataset by its place in the project and DVC's digest, where it is there."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if path.exists():
        dataset = Dataset(name, dataset_digest(path), "local", json.dumps({"uri": place_of(path)}))
        store.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "input")])])


def note_stage(state: PipelineState, stage: str) -> None:
    """Note that a stage which has no run of its own ran for a state; its parent says so."""
    _noted(state).parent.mkdir(parents=True, exist_ok=True)
    with _noted(state).open("a", encoding="utf-8") as file:
        file.write(f"{stage}\n")


def params_of(params: Params) -> dict[str, str]:
    """Every stage's params under its name, as the stages themselves log them, whichever of them run."""
    base = {"base": params.base.model_dump()}
    both = {**base, "refiner": params.refiner.model_dump()}
    sections: dict[str, dict[str, object]] = {}
    for key, part in params.sets.items():
        sections[f"prepare@{key}"] = part.prepare.model_dump()
        sections[f"train@{key}"] = {**base, "train": part.train.model_dump(), "adapter": part.adapter}
        sections[f"sample@{key}"] = {**both, "sample": part.sample.model_dump()}
    for key, morph in params.morphs.items():
        sections[f"morph@{key}"] = {**base, **morph.model_dump()}
        sections[f"evaluate@{key}"] = {**base, **params.evaluate.model_dump()}
    for key, edit in params.edits.items():
        sections[f"edit@{key}"] = {**both, **edit.model_dump()}
    return {parent_param(name, key): text for name, part in sections.items() for key, text in flatten(part).items()}


def _complete(store: Store, parent: str, params: Params) -> None:
    """The datasets of all stages, and their pictures: files at the top, which alone Compare puts side by side."""
    data, reports = workspace() / "data", workspace() / "reports"
    pictures: dict[str, Path] = {}
    for key in params.sets:
        log_dataset(store, parent, f"raw {key}", data / "raw" / key)
        log_dataset(store, parent, key, data / "prepared" / key)
        pictures[f"sample.{key}.png"] = reports / "samples" / f"{key}.png"
    for key in params.morphs:
        log_dataset(store, parent, f"morph {key}", data / "morphs" / key)
        pictures[f"morph.{key}.strip.png"] = data / "morphs" / key / "strip.png"
        pictures[f"morph.{key}.mp4"] = data / "morphs" / key / "morph.mp4"
        pictures[f"evaluate.{key}.png"] = reports / "smoothness" / f"{key}.png"
    for key in params.edits:
        pictures[f"edit.{key}.png"] = data / "edits" / key / "sheet.png"
    folder = store.place(store.client.get_run(parent).info.artifact_uri)
    for name, path in pictures.items():
        if path.is_file():
            with atomic_file(folder / name) as partial:
                shutil.copyfile(path, partial)


def _read_params() -> Params | None:
    try:
        return load_params(workspace() / "params.yaml")
    except UserError:  # it is for `check` to say why
        return None


def _describe(store: Store, parent: str, ran: list[str], unneeded: list[str]) -> None:
    before = store.client.get_run(parent).data.tags.get(NOTE, "")
    notes = [run.data.tags.get(NOTE, "") for run in _last_runs(store, parent).values()]
    store.client.set_tag(parent, NOTE, of_parent(before, notes, ran, unneeded, parent))


def _last_runs(store: Store, parent: str) -> "dict[str, Run]":
    """The newest run of each stage, in the order in which they ran first."""
    return {run.info.run_name: run for run in reversed(store.search(f"tags.`{PARENT}` = '{parent}'"))}


def _worst(statuses: set[str]) -> str:
    return next((status for status in ("FAILED", "KILLED") if status in statuses), "FINISHED")


def _noted(state: PipelineState) -> Path:
    return workspace() / ".work" / "tracking" / f"checked-{state.digest}"
