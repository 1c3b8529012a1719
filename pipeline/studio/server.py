"""The studio as an app: its pages, its interface for them, and the files that they show.

It does what the command line does and nothing else: whatever takes longer than a moment is a job in the queue.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pipeline.errors import Problem, UserError, of_system
from pipeline.report.figures import ENDS, PACE
from pipeline.studio import api, gallery, media
from pipeline.studio.dashboard import Dashboard
from pipeline.studio.drafting import styles_of
from pipeline.studio.fields import captions_known, fields_of, words_of
from pipeline.studio.jobs import Queue
from pipeline.studio.project import Project
from pipeline.studio.runner import Runner
from pipeline.studio.security import Guard, TooLarge, refused, too_large
from pipeline.studio.uploads import MOST_BYTES, Draft

ELSEWHERE = tuple(f"morph.{name}" for name in ("frames", "fps", "hold", "loop", "pacing", "style_from", "style_to"))
"""Keys that the page of a new morph has fields of its own for, or that are not for morphs without a style."""


class Studio:
    """What the routes work with. runner: of the jobs; None: a new one over the queue on disk. stopping: set when the
    server is about to end."""

    def __init__(self, project: Project, runner: Runner | None = None) -> None:
        self.project = project
        self.runner = runner or Runner(Queue(), project.morphline, project.environment)
        self.queue, self.dashboard = self.runner.queue, Dashboard(project.morphline)
        self.stopping = asyncio.Event()
        places = (("pipeline.studio", "pages"), ("pipeline.report", "templates"))
        self.pages = Environment(
            loader=ChoiceLoader([PackageLoader(*place) for place in places]),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def page(self, name: str, status: int = 200, **values: Any) -> Response:
        """A page by its template."""
        return HTMLResponse(self.pages.get_template(name).render(**values), status)


def create_app(studio: Studio, token: str, names: tuple[str, ...] = ()) -> Guard:
    """The app, guarded. names: see `Guard`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        studio.runner.start()
        yield
        studio.stopping.set()
        await asyncio.to_thread(studio.runner.stop)
        await asyncio.to_thread(studio.dashboard.stop)

    app = FastAPI(title="Morphline studio", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    _answer_for_mistakes(app, studio)
    _add_pages(app, studio)
    api.add_routes(app, studio.project, studio.runner, studio.stopping)
    media.add_routes(app, studio.project.morphline)
    return Guard(app, token, MOST_BYTES, names)


def _answer_for_mistakes(app: FastAPI, studio: Studio) -> None:
    def told(request: Request, status: int, *problems: Problem) -> Response:
        if "text/html" in request.headers.get("accept", "") and request.method in ("GET", "HEAD"):
            return studio.page("message.html", status, problems=[str(problem) for problem in problems])
        return refused(status, *problems)

    @app.exception_handler(UserError)
    async def of_user(request: Request, error: UserError) -> Response:
        return told(request, 422, *error.problems)

    @app.exception_handler(RequestValidationError)
    async def of_form(request: Request, error: RequestValidationError) -> Response:
        problems = [
            Problem(".".join(str(part) for part in one["loc"][1:]) or "the form", str(one["msg"]), "Correct it.")
            for one in error.errors()
        ]
        return told(request, 422, *problems)

    @app.exception_handler(KeyError)
    async def of_name(request: Request, error: KeyError) -> Response:
        return told(request, 404, Problem(request.url.path, "there is nothing here", "Go back to the gallery."))

    @app.exception_handler(TooLarge)
    async def of_size(request: Request, error: TooLarge) -> Response:
        return too_large(error.most)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        return told(request, error.status_code, Problem(request.url.path, str(error.detail), "Go back to the gallery."))

    @app.exception_handler(OSError)
    async def of_machine(request: Request, error: OSError) -> Response:
        return told(request, 507, of_system(error))


def _add_pages(app: FastAPI, studio: Studio) -> None:
    load: Callable[[], Any] = studio.project.load

    def is_tracked(stage: str, key: str) -> bool:
        return studio.project.run_page(f"{stage}@{key}") is not None

    @app.get("/")
    def show_gallery() -> Response:
        return studio.page("gallery.html", cards=gallery.cards(load()))

    @app.get("/morphs/{key}")
    def show_morph(key: str) -> Response:
        params = load()
        spec = params.get_morph(key)
        if not (gallery.MORPHS / key / "morph.json").is_file():
            return studio.page("unmade.html", kind="morph", key=key, picture=spec.keyframes[0])
        page = gallery.morph_page(key)
        others = [name for name in params.morphs if name != key and (gallery.MORPHS / name / "morph.json").is_file()]
        tracked = is_tracked("morph", key)
        return studio.page("morph.html", morph=page, others=others, tracked=tracked, pace=PACE, ends=ENDS)

    @app.get("/edits/{key}")
    def show_edit(key: str) -> Response:
        load().get_edit(key)
        if not (gallery.EDITS / key / "edit.json").is_file():
            return studio.page("unmade.html", kind="edit", key=key, picture="")
        return studio.page("edit.html", key=key, facts=gallery.edit_facts(key), tracked=is_tracked("edit", key))

    @app.get("/sets/{key}")
    def show_set(key: str) -> Response:
        spec = load().get_set(key)
        pictures, adapters = gallery.pictures_of(key), gallery.adapters_of(key)
        tracked = is_tracked("train", key)
        return studio.page("set.html", key=key, spec=spec, pictures=pictures, adapters=adapters, tracked=tracked)

    @app.get("/runs/{stage}/{key}")
    def show_run(stage: str, key: str) -> Response:
        page = studio.project.run_page(f"{stage}@{key}") if stage in ("morph", "train", "evaluate", "edit") else None
        if page is None:
            raise KeyError(stage)
        return RedirectResponse(studio.dashboard.address() + page, 303)

    @app.get("/compare")
    def show_compare(a: str, b: str) -> Response:
        params = load()
        for key in (a, b):
            params.get_morph(key)
        first, second = gallery.morph_page(a), gallery.morph_page(b)
        frames = gallery.side_by_side(first, second)
        different = gallery.differences(first.facts, second.facts)
        return studio.page("compare.html", first=first, second=second, frames=frames, different=different)

    @app.get("/new")
    def new_draft() -> Response:
        return RedirectResponse(f"/new/{Draft.new().key}", 303)

    @app.get("/new/{key}")
    def show_draft(key: str) -> Response:
        draft, params = Draft(key), load()
        text = api.PARAMS.read_text(encoding="utf-8")
        uploads = {name: upload.__dict__ for name, upload in draft.uploads().items()}
        return studio.page(
            "new.html", draft=key, start={"uploads": uploads, "form": draft.form()}, params=params,
            sections=fields_of(params, text, ELSEWHERE), captions=captions_known(params),
            words=words_of(params.base.source), styles=styles_of(params),
        )  # fmt: skip

    @app.get("/style")
    def new_style() -> Response:
        return RedirectResponse(f"/style/{Draft.new().key}", 303)

    @app.get("/style/{key}")
    def show_style(key: str) -> Response:
        draft, params = Draft(key), load()
        uploads = {name: upload.__dict__ for name, upload in draft.uploads().items()}
        return studio.page(
            "style.html", draft=key, start={"uploads": uploads, "form": draft.form()}, params=params,
            styles=styles_of(params), captions=captions_known(params), words=words_of(params.base.source),
        )  # fmt: skip

    @app.get("/jobs")
    def show_jobs() -> Response:
        return studio.page("jobs.html", jobs=[api.told(job, studio.runner) for job in reversed(studio.queue.all())])

    @app.get("/jobs/{key}")
    def show_job(key: str) -> Response:
        job = api.job_of(studio.queue, key)
        return studio.page("job.html", job=api.told(job, studio.runner), pictures=api.pictures_of(job))
