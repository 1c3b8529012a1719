"""What the studio's pages ask for: drafts, jobs, and how they are."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response

from pipeline.errors import Problem, UserError
from pipeline.studio.drafting import MorphForm, StyleForm, command_of, commands_of_style
from pipeline.studio.events import of_job, of_queue, told
from pipeline.studio.jobs import WAITING, Job, Queue
from pipeline.studio.progress import tail
from pipeline.studio.project import Project
from pipeline.studio.runner import Runner
from pipeline.studio.uploads import Draft

PARAMS = Path("params.yaml")
STREAM = {"cache-control": "no-store", "x-accel-buffering": "no"}


def job_of(queue: Queue, key: str) -> Job:
    """The job of that id. Raises KeyError where there is none."""
    job = queue.get(key)
    if job is None:
        raise KeyError(key)
    return job


def pictures_of(job: Job) -> list[dict[str, str]]:
    """The pictures that a job was given, with their captions, as far as its draft is still there."""
    if job.draft is None:
        return []
    try:
        draft = Draft(job.draft)
    except KeyError:
        return []
    form, there = draft.form(), draft.uploads()
    pictures = form.get("pictures", [])
    return [
        {"name": str(one["name"]), "caption": str(one.get("caption", ""))}
        for one in pictures
        if isinstance(one, dict) and one.get("name") in there
    ]


def add_routes(app: FastAPI, project: Project, runner: Runner, stopping: asyncio.Event) -> None:
    """Add the interface to the app. stopping: ends all streams."""
    queue = runner.queue

    @app.post("/api/drafts", status_code=201)
    def new_draft() -> Any:
        return {"draft": Draft.new().key}

    @app.put("/api/drafts/{key}/pictures", status_code=201)
    async def put_picture(key: str, request: Request, name: str = "picture") -> Any:
        draft = Draft(key)

        async def chunks() -> AsyncIterator[bytes]:
            async for chunk in request.stream():
                yield chunk

        most = (await asyncio.to_thread(project.load)).prepare.max_megapixels
        try:
            part = await draft.receive(name, chunks())
        except ClientDisconnect:  # nobody is there to be answered
            return Response(status_code=400)
        upload = await asyncio.to_thread(draft.take, part, name, most)
        return upload.__dict__

    @app.delete("/api/drafts/{key}/pictures/{name}", status_code=204)
    def remove_picture(key: str, name: str) -> None:
        Draft(key).remove(name)

    @app.get("/api/drafts/{key}")
    def get_draft(key: str) -> Any:
        draft = Draft(key)
        return {"uploads": {name: one.__dict__ for name, one in draft.uploads().items()}, "form": draft.form()}

    @app.put("/api/drafts/{key}", status_code=204)
    def save_draft(key: str, form: MorphForm | StyleForm) -> None:
        Draft(key).save(form.model_dump())

    @app.post("/api/drafts/{key}/check")
    def check_draft(key: str, form: MorphForm) -> Any:
        command_of(form, Draft(key), project.load(), _keys(queue))
        return {"problems": []}

    @app.post("/api/drafts/{key}/morph", status_code=201)
    def make_morph(key: str, form: MorphForm) -> Any:
        draft = Draft(key)
        with queue.together():  # another's key must not be found free in the meantime
            made, command = command_of(form, draft, project.load(), _keys(queue))
            draft.save(form.model_dump())
            job = queue.add("morph", form.title.strip() or made, command, made, draft.key)
        return {"job": job.id, "key": made}

    @app.post("/api/drafts/{key}/style", status_code=201)
    def make_style(key: str, form: StyleForm) -> Any:
        draft = Draft(key)
        with queue.together():
            jobs = commands_of_style(form, draft, project.load(), _keys(queue))
            queue.require_room(len(jobs))
            draft.save(form.model_dump())
            made = [
                queue.add(kind, (kind == "set" and form.title.strip()) or of, command, of, draft.key)
                for kind, of, command in jobs
            ]
        return {"job": made[-1].id, "key": made[-1].key, "jobs": [job.id for job in made]}

    @app.get("/api/jobs")
    def get_jobs() -> Any:
        return [told(job, runner) for job in queue.all()]

    @app.get("/api/jobs/{key}")
    def get_job(key: str) -> Any:
        return told(job_of(queue, key), runner)

    @app.get("/api/jobs/{key}/log")
    def get_log(key: str) -> Response:
        return PlainTextResponse(tail(job_of(queue, key).log))

    @app.post("/api/jobs/{key}/cancel")
    def cancel_job(key: str) -> Any:
        job = job_of(queue, key)
        if job.status not in (*WAITING, "running"):
            raise UserError(Problem("the job", f"it is {job.status}", "Only what waits or runs can be cancelled."))
        runner.cancel(key)
        return told(job_of(queue, key), runner)

    @app.post("/api/jobs/{key}/retry")
    def retry_job(key: str) -> Any:
        return told(queue.retry(job_of(queue, key).id), runner)

    @app.get("/api/jobs/{key}/events")
    async def job_events(key: str) -> Response:
        job_of(queue, key)
        stream = of_job(key, queue, runner, stopping)
        return StreamingResponse(stream, media_type="text/event-stream", headers=STREAM)

    @app.get("/api/events")
    async def queue_events() -> Response:
        stream = of_queue(queue, runner, stopping)
        return StreamingResponse(stream, media_type="text/event-stream", headers=STREAM)

    @app.get("/api/health")
    def health() -> Any:
        return JSONResponse({"ok": True})


def _keys(queue: Queue) -> list[str]:
    """Keys that jobs will make, or have begun to."""
    return [job.key for job in queue.all() if job.status in (*WAITING, "running")]
