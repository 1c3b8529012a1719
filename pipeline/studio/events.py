"""Server-sent events: how the jobs are, told whenever that changes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from pipeline.frames.first_looks import FIRST_LOOKS
from pipeline.studio.jobs import Job, Queue
from pipeline.studio.runner import Runner, is_over

EVERY = 0.4  # seconds between two looks
ALIVE = 15.0  # seconds after which something is sent in any case, so that nobody takes the line for dead


def told(job: Job, runner: Runner) -> dict[str, Any]:
    """A job as pages and events show it."""
    progress = runner.progress(job)
    status = "stopping" if job.status == "running" and runner.is_stopping(job.id) else job.status
    return {
        "id": job.id, "title": job.title, "kind": job.kind, "key": job.key, "status": status, "created": job.created,
        "started": job.started, "ended": job.ended, "problems": list(job.problems), "draft": job.draft,
        "stage": progress.stage, "stages": list(progress.stages), "label": progress.label, "step": progress.step,
        "of": progress.of, "left": progress.left, "losses": list(progress.losses), "previews": previews(job),
    }  # fmt: skip


def previews(job: Job) -> list[str]:
    """Names of the frames that can be seen already, in the order of the morph."""
    started = job.started or job.created
    try:
        files = [path for path in (FIRST_LOOKS / job.key).glob("*.png") if path.stat().st_mtime >= started - 1]
    except FileNotFoundError:  # they have just been replaced
        return []
    return sorted(path.name for path in files)


async def of_job(key: str, queue: Queue, runner: Runner, stopping: asyncio.Event) -> AsyncIterator[str]:
    """The events of one job until it has ended."""

    def now() -> tuple[str | None, bool]:
        job = queue.get(key)
        return (None, True) if job is None else (json.dumps(told(job, runner)), is_over(job))

    async for event in _changes(now, stopping):
        yield event


async def of_queue(queue: Queue, runner: Runner, stopping: asyncio.Event) -> AsyncIterator[str]:
    """The events of all jobs that wait or run: a list, whenever it changes."""

    def now() -> tuple[str | None, bool]:
        return json.dumps([told(job, runner) for job in queue.all() if not is_over(job)]), False

    async for event in _changes(now, stopping):
        yield event


async def _changes(now: Callable[[], tuple[str | None, bool]], stopping: asyncio.Event) -> AsyncIterator[str]:
    """What there is to tell, whenever that changes, and a sign of life where it does not; until it is the last.

    now: what there is to tell, None for nothing at all any more, and whether that is the last.
    """
    last, silent = "", 0.0
    while not stopping.is_set():
        said, over = await asyncio.to_thread(now)
        if said is None:
            return
        if said != last:
            last, silent = said, 0.0
            yield f"data: {said}\n\n"
        elif silent >= ALIVE:
            silent = 0.0
            yield ": still here\n\n"
        if over:
            yield "event: end\ndata: {}\n\n"
            return
        silent += EVERY
        await asyncio.sleep(EVERY)
