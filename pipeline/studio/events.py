"""Server-sent events: how the jobs are, told whenever that changes."""

import asyncio
import json
from collections.abc import AsyncIterator
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
    last, silent = "", 0.0
    while not stopping.is_set():
        job = queue.get(key)
        if job is None:
            return
        now = json.dumps(await asyncio.to_thread(told, job, runner))
        if now != last:
            last, silent = now, 0.0
            yield f"data: {now}\n\n"
        elif silent >= ALIVE:
            silent = 0.0
            yield ": still here\n\n"
        if is_over(job):
            yield "event: end\ndata: {}\n\n"
            return
        silent += EVERY
        await asyncio.sleep(EVERY)


async def of_queue(queue: Queue, runner: Runner, stopping: asyncio.Event) -> AsyncIterator[str]:
    """The events of all jobs that wait or run: a list, whenever it changes."""
    last, silent = "", 0.0
    while not stopping.is_set():
        now = await asyncio.to_thread(
            lambda: json.dumps([told(job, runner) for job in queue.all() if not is_over(job)])
        )
        if now != last:
            last, silent = now, 0.0
            yield f"data: {now}\n\n"
        elif silent >= ALIVE:
            silent = 0.0
            yield ": still here\n\n"
        silent += EVERY
        await asyncio.sleep(EVERY)
