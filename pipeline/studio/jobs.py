"""The queue on disk: a folder for each job with its JSON and its log. What is there survives any restart."""

import json
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import Problem, UserError
from pipeline.inputs import read_json
from pipeline.outputs import atomic_file
from pipeline.studio.project import STUDIO

Kind = Literal["morph", "edit", "set"]
Status = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
WAITING: tuple[Status, ...] = ("interrupted", "queued")
ENDED: tuple[Status, ...] = ("done", "failed", "cancelled")
MOST_WAITING = 100


@dataclass(frozen=True)
class Job:
    """A command of the command line that is to run, runs or has run.

    command: what follows `morphline`. key: of the morph, edit or set that it makes. draft: where its pictures are.
    process: number and start (seconds since 1970) of what runs it. problems: why it failed, a line each. Times are
    seconds since 1970.
    """

    id: str
    kind: Kind
    title: str
    command: tuple[str, ...]
    key: str
    draft: str | None
    created: float
    status: Status = "queued"
    started: float | None = None
    ended: float | None = None
    process: tuple[int, float] | None = None
    problems: tuple[str, ...] = field(default=())

    @property
    def folder(self) -> Path:
        """Its own folder."""
        return STUDIO / "jobs" / self.id

    @property
    def log(self) -> Path:
        """What the command prints."""
        return self.folder / "log.txt"


class Queue:
    """All jobs, the oldest first. Every change is on disk before it is seen. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        self.version = 0
        for path in sorted((STUDIO / "jobs").glob("*/job.json")):
            if job := _read(path):
                self._jobs[job.id] = job

    def all(self) -> list[Job]:
        """Every job, the oldest first."""
        with self._lock:
            return sorted(self._jobs.values(), key=lambda job: (job.created, job.id))

    def get(self, key: str) -> Job | None:
        """The job of that id."""
        with self._lock:
            return self._jobs.get(key)

    def together(self) -> AbstractContextManager[object]:
        """While it lasts, nobody else changes the queue."""
        return self._lock

    def require_room(self, count: int) -> None:
        """Raises UserError where so many more would be too many to wait."""
        with self._lock:
            if sum(job.status in WAITING for job in self._jobs.values()) + count > MOST_WAITING:
                raise UserError(Problem("the queue", f"{MOST_WAITING} jobs are waiting", "Wait, or cancel some."))

    def add(
        self,
        kind: Literal["morph", "edit", "set"],
        title: str,
        command: Sequence[str],
        key: str,
        draft: str | None = None,
    ) -> Job:
        """Put a job at the end of the queue. A part of its command that begins with `{folder}/` lies in the job's own.

        Raises:
            UserError: when too many wait already.
        """
        with self._lock:
            self.require_room(1)
            now = time.time()
            name = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now)) + f"{now % 1:.3f}"[1:].replace(".", "-")
            job = Job(f"{name}-{secrets.token_hex(3)}", kind, title, (), key, draft, now)
            job = replace(job, command=tuple(_in_folder(part, job.folder) for part in command))
            self._store(job)
            return job

    def change(self, key: str, **values: Any) -> Job:
        """A job with other values, stored."""
        with self._lock:
            job = replace(self._jobs[key], **values)
            self._store(job)
            return job

    def take(self) -> Job | None:
        """The next job to run: one that was interrupted before all that only wait. It counts as running now."""
        with self._lock:
            for status in WAITING:
                for job in self.all():
                    if job.status == status:
                        return self.change(job.id, status="running", started=time.time(), ended=None, problems=())
            return None

    def cancel_waiting(self, key: str) -> bool:
        """Cancel a job that waits; whether it was one."""
        with self._lock:
            if self._jobs[key].status not in WAITING:
                return False
            self.change(key, status="cancelled", ended=time.time())
            return True

    def retry(self, key: str) -> Job:
        """Put a job that has failed or was cancelled into the queue again.

        Raises:
            UserError: for one that is in it, or has succeeded, and when too many wait already.
        """
        with self._lock:
            job = self._jobs[key]
            if job.status not in ("failed", "cancelled"):
                raise UserError(
                    Problem("the job", f"it is {job.status}", "Only what failed or was cancelled runs again.")
                )
            self.require_room(1)
            return self.change(key, status="queued", started=None, ended=None, process=None, problems=())

    def _store(self, job: Job) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(job.folder / "job.json") as path:
            path.write_text(json.dumps(asdict(job), indent=2) + "\n", encoding="utf-8")
        self._jobs[job.id] = job
        self.version += 1


def _in_folder(part: str, folder: Path) -> str:
    return f"{folder}/{part.removeprefix('{folder}/')}" if part.startswith("{folder}/") else part


def _read(path: Path) -> Job | None:
    """A job from its file; None where that is damaged: the others are not worse for it."""
    try:
        values = read_json(path)
        for name in ("command", "problems", "process"):
            values[name] = tuple(values[name]) if values[name] is not None else None
        job = Job(**values)
        known = isinstance(job.created, float) and job.status in (*WAITING, "running", *ENDED)
        return job if known and job.id == path.parent.name else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
