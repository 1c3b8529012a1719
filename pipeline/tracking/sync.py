"""`morphline track sync`: brings all runs of the project's database to the server."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.errors import Problem, UserError, redacted
from pipeline.sections import TrackingSection
from pipeline.tracking.connection import unusable, why
from pipeline.tracking.mirror import Mirror
from pipeline.tracking.runs import PARENT, STATE, close_dead
from pipeline.tracking.store import Store, open_store, server_uri

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class Outcome:
    """What became of one run. sent: things that the server lacked. problem: why some are left; empty when all is well.
    failed: whether somebody must look after it."""

    stage: str
    sent: int
    problem: str = ""
    failed: bool = False

    def __str__(self) -> str:
        return f"{self.stage}: {self.sent} sent{f'; {self.problem}' if self.problem else ''}"


def sync(params: TrackingSection) -> Iterator[Outcome]:
    """Bring whatever the named server lacks, run by run, and report the runs that it lacked something of.

    Raises:
        UserError: the server cannot be reached at all, or none is named.
    """
    uri = server_uri(params)
    if uri is None:
        fix = "Name it in tracking.uri, or in MLFLOW_TRACKING_URI. Without one, all runs are in the project's database."
        raise UserError(Problem("tracking.uri", "no tracking server is named", fix))
    mirror = Mirror(open_store(params), uri)
    try:
        mirror.open(params.experiment)
    except Exception as error:
        fix = "Start it or correct the address, and run `morphline track sync` again. All runs stay in the project."
        raise UserError(Problem(f"tracking server {redacted(uri)}", f"cannot be used ({why(error)})", fix)) from None
    for experiment in mirror.store.client.search_experiments():
        mirror.store = replace(mirror.store, experiment_id=experiment.experiment_id)
        runs = mirror.store.search(f"tags.`{STATE}` != ''")
        for run in runs:
            if PARENT not in run.data.tags and run.info.status == "RUNNING":
                _close_dead(mirror.store, run.info.run_id)
        for run in sorted(reversed(runs), key=lambda run: PARENT in run.data.tags):
            outcome = _bring(mirror, run)
            if outcome.sent or outcome.problem:
                yield outcome


def _close_dead(store: Store, parent: str) -> None:
    try:
        close_dead(store, parent)
    except Exception as error:  # a disk without room, or one that is read-only
        raise UserError(unusable(f"sqlite:///{store.database}", error)) from None


def _bring(mirror: Mirror, run: "Run") -> Outcome:
    before, refused, name = mirror.count, len(mirror.refused), run.info.run_name
    lock = run.info.run_id if PARENT in run.data.tags else f"{run.info.run_id}-copy"
    try:
        with mirror.store.lock(lock, wait=0) as locked:
            if locked is False:
                return Outcome(name, 0, "left to the process that is at work on it")
            mirror.bring(run.info.run_id)
    except Exception as error:
        return Outcome(name, mirror.count - before, why(error), failed=True)
    news = [f"refused: {what} ({reason})" for what, reason in list(mirror.refused.items())[refused:]]
    return Outcome(name, mirror.count - before, ", ".join(news), failed=bool(news))
