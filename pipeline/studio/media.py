"""The files that the studio's pages show and offer: each found by a key and a number, never by a path."""

import re
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response, StreamingResponse

from pipeline.errors import Problem, UserError
from pipeline.frames.first_looks import FIRST_LOOKS
from pipeline.frames.variants import VARIANTS
from pipeline.params import KEY, LONGEST_KEY
from pipeline.studio import gallery
from pipeline.studio.project import STUDIO
from pipeline.studio.uploads import Draft

KEEP = {"cache-control": "private, max-age=86400"}  # of addresses that change with what they show
HERE = Path(__file__).parent / "pages"
REPORT = Path(__file__).parent.parent / "report" / "templates"
STATIC = {
    "report.css": (REPORT / "page.css", "text/css"),
    "viewer.js": (REPORT / "page.js", "text/javascript"),
    "studio.css": (HERE / "studio.css", "text/css"),
    "common.js": (HERE / "common.js", "text/javascript"),
    "new.js": (HERE / "new.js", "text/javascript"),
    "job.js": (HERE / "job.js", "text/javascript"),
    "icon.svg": (HERE / "icon.svg", "image/svg+xml"),
}
_writing = threading.Lock()
CLIPS = {"webp": "image/webp", "mp4": "video/mp4"}


def checked(key: str) -> str:
    """A key, as params.yaml may have it. Raises KeyError for anything else."""
    if not re.fullmatch(KEY, key) or len(key) > LONGEST_KEY:
        raise KeyError(key)
    return key


def file(path: Path, media_type: str, download: str | None = None) -> Response:
    """A file that is there. Raises KeyError where it is not."""
    if not path.is_file():
        raise KeyError(path.name)
    return FileResponse(path, media_type=media_type, headers=KEEP, filename=download)


def add_routes(app: FastAPI, morphline: Sequence[str]) -> None:
    """Add them to the app. morphline: how the command line is called, which writes what is not there yet."""

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        path, media_type = STATIC[name]
        return FileResponse(path, media_type=media_type, headers={"cache-control": "no-cache"})

    @app.get("/media/drafts/{key}/{name}")
    def thumbnail(key: str, name: str) -> Response:
        return file(Draft(key).thumbnail(name), "image/webp")

    @app.get("/media/morphs/{key}/still.webp")
    def still(key: str) -> Response:
        return _small(gallery.frame_file(checked(key), "frames", 0))

    @app.get("/media/morphs/{key}/strip.png")
    def strip(key: str) -> Response:
        return file(gallery.MORPHS / checked(key) / "strip.png", "image/png")

    @app.get("/media/morphs/{key}/morph.{suffix}")
    def clip(key: str, suffix: str, download: bool = False) -> Response:
        if suffix == "gif":
            return file(_gif(checked(key), morphline), "image/gif", f"{key}.gif")
        path = gallery.MORPHS / checked(key) / f"morph.{suffix}"
        return file(path, CLIPS[suffix], f"{key}.{suffix}" if download else None)

    @app.get("/media/morphs/{key}/frames.zip")
    def frames(key: str) -> Response:
        if not (gallery.MORPHS / checked(key) / "morph.json").is_file():
            raise KeyError(key)
        headers = {"content-disposition": f'attachment; filename="{key}-frames.zip"'}
        return StreamingResponse(gallery.zipped_frames(key), media_type="application/zip", headers=headers)

    @app.get("/media/morphs/{key}/{folder}/{number}.webp")
    def frame(key: str, folder: str, number: int) -> Response:
        if folder not in {variant.folder for variant in VARIANTS}:
            raise KeyError(folder)
        return _small(gallery.frame_file(checked(key), folder, number))

    @app.get("/media/curves/{key}.png")
    def curves(key: str) -> Response:
        return file(Path("reports/smoothness") / f"{checked(key)}.png", "image/png")

    @app.get("/media/edits/{key}/{name}.png")
    def edit(key: str, name: str) -> Response:
        if name not in ("sheet", "curve"):
            raise KeyError(name)
        return file(gallery.EDITS / checked(key) / f"{name}.png", "image/png")

    @app.get("/media/samples/{key}.png")
    def samples(key: str) -> Response:
        return file(Path("reports/samples") / f"{checked(key)}.png", "image/png")

    @app.get("/media/sets/{key}/{number}.webp")
    def picture(key: str, number: int) -> Response:
        names = gallery.pictures_of(checked(key))
        if not 0 <= number < len(names):
            raise KeyError(number)
        return _small(gallery.SETS / key / names[number])

    @app.get("/media/adapters/{key}/{number}.safetensors")
    def adapter(key: str, number: int) -> Response:
        names = gallery.adapters_of(checked(key))
        if not 0 <= number < len(names):
            raise KeyError(number)
        name = f"{key}-{Path(names[number]).stem}.safetensors"
        return file(gallery.ADAPTERS / key / names[number], "application/octet-stream", name)

    @app.get("/media/previews/{key}/{name}")
    def preview(key: str, name: str) -> Response:
        if not re.fullmatch(r"\d{3}-\d\.\d{6}\.png", name):
            raise KeyError(name)
        return file(FIRST_LOOKS / checked(key) / name, "image/png")


def _gif(key: str, morphline: Sequence[str]) -> Path:
    """The morph as a GIF, which the command line writes when it is first asked for, one at a time.

    Raises:
        KeyError: where there is no such morph.
        UserError: with what the command line says.
    """
    made = gallery.MORPHS / key / "morph.json"
    if not made.is_file():
        raise KeyError(key)
    path = STUDIO / "clips" / f"{key}.gif"
    with _writing:
        if not path.is_file() or path.stat().st_mtime < made.stat().st_mtime:
            command = [*morphline, "clip", key, "--out", str(path), "--force"]
            answer = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
            if answer.returncode:
                found = [line.strip() for line in answer.stderr.splitlines() if line.startswith("  ")]
                raise UserError(
                    *(Problem("GIF", line, "Download the MP4 or the WebP.") for line in found or ["failed"])
                )
    return path


def _small(path: Path) -> Response:
    return Response(gallery.small(path), media_type="image/webp", headers=KEEP)
