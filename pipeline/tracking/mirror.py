"""Brings runs of the project's database to a server: whatever it lacks of each, as often as one likes.

The server gives its own ids, so a run is found there by a tag with its local id, and looked for before it is made; so
is a model. Numbers, params, tags and datasets that are sent twice stay once; files are compared by path and size, and
where they may have changed by the time of the last pass that brought all of them. All that is noted in the server's own
tags, so that nothing is kept here, and a kill between any two requests does no harm.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import redacted
from pipeline.tracking.adapters import bring_models, bring_versions
from pipeline.tracking.connection import connect, experiment_of, is_refusal, why
from pipeline.tracking.descriptions import NOTE
from pipeline.tracking.runs import OPEN, PARENT, PLACE
from pipeline.tracking.store import ARTIFACTS, Store, search_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EVERY, FIRST_PAUSE, SHARE = 5.0, 30.0, 10.0
BATCH = 900  # metrics and a tag in one request, of which MLflow takes 1000 things at once
MOST_REFUSALS = 30  # a server that refuses more is out of order

# Tags on the server: the local id; row number and count of metrics that it has; time of the last pass that brought all
# files; the description that was sent, so that one that somebody edited there stays.
NOTES = ("run", "rows", "files", "note")
SERVER, HOME = "morphline", "morphline.worker"
"""Where those tags' names begin: on a server; in a project's own database, where they are of a worker's."""

log = logging.getLogger(__name__)


class Mirror:
    """One server. count: how many things it was sent. refused: what it refused for good, with its reasons. parents:
    runs there by the id of the run here whose place they take."""

    client: "MlflowClient"

    def __init__(self, store: Store, uri: str, marks: str = SERVER) -> None:
        self.store = store
        self.uri = uri
        self.parents: dict[str, str] = {}
        self.local, self._rows, self._done, self._sent = (f"{marks}.{name}" for name in NOTES)
        self.count = 0
        self.refused: dict[str, str] = {}
        self._experiments: dict[str, str] = {}
        self._away, self._next, self._pause = False, 0.0, FIRST_PAUSE

    def open(self, experiment: str) -> str:
        """The id of an experiment there. Raises what MLflow raises."""
        if experiment not in self._experiments:
            self.client = connect(self.uri)
            location = None if self.uri.startswith(("http", "databricks")) else self.store.place(ARTIFACTS).as_uri()
            self._experiments[experiment] = str(experiment_of(self.client, experiment, location).experiment_id)
        return self._experiments[experiment]

    def report(self, parent: str, child: str = "", last: bool = False) -> None:
        """Bring a parent and a run of it now and then; always when it is the `last` time. Never raises.

        After a failure the pauses double, so that a hanging server costs little; a slow one costs a tenth of the time.
        """
        started = time.monotonic()
        if started < self._next and not last:
            return
        try:
            with self.store.lock(f"{parent}-copy", wait=60.0 if last else 0.0) as locked:
                if locked is False:
                    return
                self.bring(parent)
            if child:
                self.bring(child)
        except Exception as error:
            self.pause(error)
            return
        if self._away:
            log.warning("The tracking server %s answers again and has everything", redacted(self.uri))
        self._away, self._pause = False, FIRST_PAUSE
        self._next = time.monotonic() + max(EVERY, SHARE * (time.monotonic() - started))

    def pause(self, error: Exception) -> None:
        """The server is away: leave it alone for a while."""
        if not self._away:
            log.warning("The tracking server %s does not answer (%s). The work goes on, tracked in %s;"
                        " what the server lacks at the end, `morphline track sync` brings",
                        redacted(self.uri), why(error), self.store.database)  # fmt: skip
        self._away, self._next = True, time.monotonic() + self._pause
        self._pause *= 2

    def bring(self, run_id: str) -> None:
        """Whatever the server lacks of a run, whose parent it has. Raises what MLflow raises when it is away."""
        run = self.store.client.get_run(run_id)
        there = self.find(run) or self._make(run)
        if there.info.lifecycle_stage != "active":
            return  # somebody deleted it there
        self._params(run, there)
        self._metrics(run, there)
        self._datasets(run, there)
        self._files(run, there)
        bring_models(self, run, there)
        bring_versions(self, run, there)
        self._tags(run, there)
        if (there.info.status, there.info.end_time) != (run.info.status, run.info.end_time):
            self.client.update_run(there.info.run_id, run.info.status)
            if run.info.status != "RUNNING":
                self.client.set_terminated(there.info.run_id, run.info.status, run.info.end_time)
            self.count += 1

    def find(self, run: "Run") -> "Run | None":
        """The run on the server. Where a request to make it timed out and arrived all the same, it is there twice: the
        other one goes."""
        experiment = self.open(self.store.client.get_experiment(run.info.experiment_id).name)
        answer = search_runs(self.client, experiment, f"tags.`{self.local}` = '{run.info.run_id}'", deleted=True)
        found = [one for one in answer if one.data.tags.get(self.local) == run.info.run_id]  # not every server searches
        found.sort(key=lambda one: (one.info.lifecycle_stage == "active", self._rows in one.data.tags, one.info.run_id))
        for twice in found[:-1]:
            if twice.info.lifecycle_stage == "active":
                self.client.delete_run(twice.info.run_id)
        return found[-1] if found else None

    def send(self, what: str, items: Sequence[Any], call: Callable[[Any], object], most: int = 100) -> None:
        """Send items in requests of at most so many; where one is refused, in ever smaller ones, so that only what is
        bad stays behind. Raises what MLflow raises when the server is away, or refuses too much."""
        items = [item for item in items if f"{what} {_name(item)}" not in self.refused]
        for start in range(0, len(items), most):
            part = items[start : start + most]
            try:
                call(part)
                self.count += len(part)
            except Exception as error:
                if not is_refusal(error) or len(self.refused) > MOST_REFUSALS:
                    raise
                if len(part) > 1:
                    self.send(what, part, call, len(part) // 2)
                    continue
                self.refused[f"{what} {_name(part[0])}"] = why(error)
                log.warning("The tracking server refuses %s %s: %s", what, _name(part[0]), why(error))

    def _make(self, run: "Run") -> "Run":
        tags = {self.local: run.info.run_id}
        if parent := run.data.tags.get(PARENT):
            above = self.find(self.store.client.get_run(parent)) if parent not in self.parents else None
            id_above = above.info.run_id if above else self.parents.get(parent)
            tags |= {PARENT: id_above} if id_above else {}
        experiment = self.open(self.store.client.get_experiment(run.info.experiment_id).name)
        self.client.create_run(experiment, run.info.start_time, tags, run.info.run_name)
        if made := self.find(run):
            return made
        raise ConnectionError("it does not know the run that it just made")

    def _params(self, run: "Run", there: "Run") -> None:
        from mlflow.entities import Param

        lacking = [Param(key, text) for key, text in run.data.params.items() if key not in there.data.params]
        self.send("param", lacking, lambda part: self.client.log_batch(there.info.run_id, params=part))

    def _metrics(self, run: "Run", there: "Run") -> None:
        from mlflow.entities import Metric

        run_id, id_there, refused = run.info.run_id, there.info.run_id, len(self.refused)
        last, count = map(int, there.data.tags.get(self._rows, "0 0").split())
        known = "SELECT COUNT(*) FROM metrics WHERE run_uuid = ? AND rowid <= ?"
        new = "SELECT rowid, key, value, is_nan, timestamp, step FROM metrics WHERE run_uuid = ? AND rowid > ?"
        if self.store.query(known, run_id, last) != [(count,)]:
            last = count = 0  # rows were deleted here, and others may have their numbers now: all once more
        while rows := self.store.query(f"{new} ORDER BY rowid LIMIT ?", run_id, last, BATCH):
            last, count = rows[-1][0], count + len(rows)
            metrics = [Metric(key, math.nan if nan else value, at, step) for _, key, value, nan, at, step in rows]
            self.send("metric", metrics, lambda part: self.client.log_batch(id_there, metrics=part), BATCH)
            if len(self.refused) == refused:  # else all since are sent again, until it is taken
                self.client.set_tag(id_there, self._rows, f"{last} {count}")

    def _datasets(self, run: "Run", there: "Run") -> None:
        known = {(one.dataset.name, one.dataset.digest) for one in there.inputs.dataset_inputs}
        used = run.inputs.dataset_inputs
        lacking = [one for one in used if (one.dataset.name, one.dataset.digest) not in known]
        self.send("dataset", lacking, lambda part: self.client.log_inputs(there.info.run_id, part))

    def _files(self, run: "Run", there: "Run") -> None:
        folder, id_there, refused = self.store.place(run.info.artifact_uri), there.info.run_id, len(self.refused)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".partial" not in path.name]
        stats = {path.relative_to(folder).as_posix(): path.stat() for path in paths}
        state = f"{max((stat.st_mtime_ns for stat in stats.values()), default=0)} {len(stats)}"
        before = there.data.tags.get(self._done, "0 0")
        if state == before:
            return
        listings = [self.client.list_artifacts(id_there, below or None) for below in {_folder(name) for name in stats}]
        sizes = {file.path: file.file_size for listing in listings for file in listing}
        for name, stat in stats.items():
            # Pictures of steps have names of their own, and never change.
            changed = stat.st_mtime_ns > int(before.split()[0]) and not name.startswith("images/")
            if changed or sizes.get(name) != stat.st_size:
                self.send("file", [folder / name], partial(self._upload, id_there, _folder(name)))
        if len(self.refused) == refused:
            self.client.set_tag(id_there, self._done, state)

    def _upload(self, id_there: str, below: str, part: Sequence[Path]) -> None:
        self.client.log_artifact(id_there, str(part[0]), below or None)

    def _tags(self, run: "Run", there: "Run") -> None:
        from mlflow.entities import RunTag

        wanted = {key: text for key, text in run.data.tags.items()
                  if key not in (OPEN, PLACE, PARENT, NOTE) and not key.startswith(f"{HOME}.")}  # fmt: skip
        known = there.data.tags
        if NOTE not in known or _digest(known[NOTE]) == known.get(self._sent):
            note = run.data.tags.get(NOTE, "").replace(run.info.run_id, there.info.run_id)
            wanted |= {NOTE: note, self._sent: _digest(note)}
        items = [RunTag(key, text) for key, text in wanted.items() if known.get(key) != text]
        self.send("tag", items, lambda part: self.client.log_batch(there.info.run_id, tags=part))


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _name(item: Any) -> str:
    """What a refusal is reported of."""
    if isinstance(item, Path):
        return str(item)
    name = next(getattr(part, what) for part in (item, getattr(item, "dataset", None)) for what in ("key", "name")
                if hasattr(part, what))  # fmt: skip
    return f"{name} at step {item.step}" if hasattr(item, "step") else str(name)
