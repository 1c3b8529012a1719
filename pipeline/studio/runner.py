"""Runs the jobs, one at a time, each as a process of the command line in a session of its own.

What a job prints goes to a file and not through a pipe: so it outlives the server, and a server that is started anew
takes a job over that is still running, or runs one again that was interrupted, which goes on from where it was.
"""

import errno
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import psutil

from pipeline.studio.jobs import ENDED, Job, Queue
from pipeline.studio.progress import LogReader, Progress, problems_in

POLL = 0.2  # seconds
PAUSE = 2.0  # before what a full disk has refused is tried again
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PATIENCE = (
    (signal.SIGINT, 30.0),
    (getattr(signal, "SIGTERM", signal.SIGINT), 10.0),
    (getattr(signal, "SIGKILL", signal.SIGINT), 10.0),
)
"""How a job is stopped: by a signal to its processes, and the next one after so many seconds. The first is Ctrl-C's, at
which a training saves where it is."""
# Nothing in a job may wait for an answer, and its words come out as they are written, twice a second at most.
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "TQDM_MININTERVAL": "0.5", "COLUMNS": "120", "NO_COLOR": "1"}

log = logging.getLogger(__name__)


class Runner:
    """The thread that runs the queue's jobs. morphline: how the command line is called."""

    def __init__(
        self,
        queue: Queue,
        morphline: Sequence[str],
        environment: Mapping[str, str] = {},
        patience: Sequence[tuple[int, float]] = PATIENCE,
    ) -> None:
        self.queue, self.morphline = queue, list(morphline)
        self.environment = {**ENVIRONMENT, **environment}
        self.patience = patience
        self._stopping, self._cancelled = threading.Event(), set[str]()
        self._readers: dict[str, LogReader] = {}
        self._thread = threading.Thread(target=self._loop, name="jobs", daemon=True)

    def start(self) -> None:
        """Begin to run jobs."""
        self._thread.start()

    def stop(self) -> None:
        """Interrupt what runs, as Ctrl-C would, and wait for its end. It runs on at the next start."""
        self._stopping.set()
        self._thread.join()

    def cancel(self, key: str) -> None:
        """Cancel a job that waits or runs; of one that runs, all processes are stopped."""
        if not self.queue.cancel_waiting(key):
            self._cancelled.add(key)

    def is_stopping(self, key: str) -> bool:
        """Whether a job that runs was cancelled, and has not ended yet."""
        return key in self._cancelled

    def progress(self, job: Job) -> Progress:
        """How far a job is."""
        reader = self._readers.get(job.id)
        if reader is None:
            reader = self._readers[job.id] = LogReader(job.log)
        return reader.read() if job.status != "queued" else Progress()

    def _loop(self) -> None:
        for job in self.queue.all():
            if job.status == "running":
                try:
                    self._take_over(job)
                except OSError as error:  # the server ends while nothing can be noted
                    log.warning("The queue waits (%s)", error)
        while not self._stopping.wait(POLL):
            try:
                if taken := self.queue.take():
                    self._run(taken)
            except OSError as error:  # a full disk: what waits goes on waiting until there is room
                log.warning("The queue waits (%s)", error)
                self._stopping.wait(PAUSE)

    def _note(self, key: str, **values: Any) -> None:
        """Change a job, and try again while the disk is full: how it ended must not be lost."""
        while True:
            try:
                self.queue.change(key, **values)
                return
            except OSError as error:
                log.warning("A job cannot be noted (%s)", error)
                if self._stopping.wait(PAUSE):
                    raise

    def _take_over(self, job: Job) -> None:
        """A job that a server which is no more had started: its process may still run."""
        process = _alive(job)
        if process is not None:
            self._watch(job, process.pid, lambda: _alive(job) is not None)
        if self.queue.get(job.id) == job:  # neither cancelled nor interrupted now
            # How it ended, nobody was there to see: the same command again is quick where it had succeeded.
            self._note(job.id, status="interrupted", process=None)

    def _run(self, job: Job) -> None:
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            printed = job.log.open("wb")
        except OSError as error:
            if error.errno in NO_ROOM:  # it goes on waiting
                self._note(job.id, status="interrupted", started=None)
                raise
            self._note(job.id, status="failed", ended=time.time(), problems=(str(error),))
            return
        with printed:
            self._readers[job.id] = LogReader(job.log)
            try:
                process = subprocess.Popen(
                    [*self.morphline, *job.command], stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT,
                    start_new_session=True, env={**os.environ, **self.environment},
                )  # fmt: skip
            except OSError as error:
                self._note(job.id, status="failed", ended=time.time(), problems=(str(error),))
                return
        with suppress(psutil.NoSuchProcess, OSError):  # without it a server that starts anew would not find it
            born = psutil.Process(process.pid).create_time()
            job = self.queue.change(job.id, process=(process.pid, born))
        if self._watch(job, process.pid, lambda: process.poll() is None):
            return
        if process.returncode == 0:
            self._note(job.id, status="done", ended=time.time(), process=None)
        else:
            problems = problems_in(job.log) or [f"it ended with exit code {process.returncode}; the log says more"]
            self._note(job.id, status="failed", ended=time.time(), process=None, problems=tuple(problems))

    def _watch(self, job: Job, group: int, lives: Callable[[], bool]) -> bool:
        """Wait for the end of a job's process; stop it where it is cancelled or the server ends. Whether it was."""
        stopped: float | None = None
        step = -1
        while lives():
            if self._stopping.is_set() or job.id in self._cancelled:
                now = time.monotonic()
                if stopped is None or (step + 1 < len(self.patience) and now - stopped >= self.patience[step][1]):
                    step, stopped = step + 1, now
                    _signal(group, self.patience[step][0])
                elif step + 1 == len(self.patience) and now - stopped >= self.patience[step][1]:
                    break
            time.sleep(POLL)
        if stopped is None:
            self._cancelled.discard(job.id)
            return False
        _signal(group, self.patience[-1][0])  # whatever of the group has outlived its first process
        status = "cancelled" if job.id in self._cancelled else "interrupted"
        self._cancelled.discard(job.id)
        self._note(job.id, status=status, ended=time.time(), process=None)
        return True


def is_over(job: Job) -> bool:
    """Whether a job has ended, for good or not."""
    return job.status in ENDED


def _alive(job: Job) -> psutil.Process | None:
    """The process that a job notes, if it is still that one."""
    if job.process is None:
        return None
    try:
        process = psutil.Process(job.process[0])
        same = abs(process.create_time() - job.process[1]) < 1 and process.status() != psutil.STATUS_ZOMBIE
        return process if same else None
    except psutil.Error:
        return None


def _signal(group: int, number: int) -> None:
    """Send a signal to all processes of a job."""
    with suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(group, number)
        else:
            psutil.Process(group).terminate()
