"""Drafts: pictures that were dropped and what was written beside them, on disk until somebody makes a morph of them.

Nothing that a browser sends is served again or trusted: a file's name becomes letters and digits, its content is
decoded as `prepare` decodes it, and what pages show are small copies made from the pixels.
"""

import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.errors import Problem, UserError
from pipeline.inputs import read_json
from pipeline.outputs import atomic_file
from pipeline.params import slugify
from pipeline.pictures.reading import UnreadablePicture, load_picture
from pipeline.pictures.rows import name_faults
from pipeline.studio.project import STUDIO

MOST_BYTES = 64 * 2**20
MOST_PICTURES = 64
MOST_DRAFTS = 200
THUMBNAIL = 480  # px of the longer side
SUFFIXES = {"JPEG": ".jpg", "JPEG2000": ".jp2", "TIFF": ".tif", "MPO": ".jpg"}

_ID = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}\.[a-z0-9]{2,5}")
# One picture at a time is decoded, so that many uploads take the memory of one. Pillow's limit is global, too.
_decoding = threading.Lock()
_naming = threading.Lock()


@dataclass(frozen=True)
class Upload:
    """A picture of a draft: its name there, what the person's file was called, and its size in pixels, upright."""

    name: str
    called: str
    width: int
    height: int


class Draft:
    """The draft in a folder of its own, whose name is its id.

    Raises:
        KeyError: when there is none of that id.
    """

    def __init__(self, key: str) -> None:
        self.key, self.folder = key, STUDIO / "drafts" / key
        if not _ID.fullmatch(key) or not self.folder.is_dir():
            raise KeyError(key)

    @classmethod
    def new(cls) -> "Draft":
        """An empty draft. The oldest go where there are more than MOST_DRAFTS."""
        drafts = STUDIO / "drafts"
        key = secrets.token_hex(8)
        (drafts / key / "pictures").mkdir(parents=True)
        (drafts / key / "thumbnails").mkdir()
        there = sorted(drafts.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
        for old in there[MOST_DRAFTS:]:
            shutil.rmtree(old, ignore_errors=True)
        return cls(key)

    async def receive(self, called: str, chunks: AsyncIterator[bytes]) -> Path:
        """Write an upload to a file of the draft's as it comes, never more of it in memory than a chunk."""
        path = self.folder / f"{secrets.token_hex(8)}.part"
        try:
            with path.open("xb") as file:
                async for chunk in chunks:
                    file.write(chunk)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def take(self, part: Path, called: str, max_megapixels: float) -> Upload:
        """Make a received file a picture of the draft.

        Raises:
            UserError: for anything that `prepare` would not take; the file is gone then.
        """
        shown = Path(called.replace("\\", "/")).name[:200] or "picture"
        try:
            with _decoding:
                picture = load_picture(part, max_megapixels)
                width, height = picture.image.size
                small = picture.image.copy()
                small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
                small = small.convert("RGBA" if "A" in small.getbands() or "transparency" in small.info else "RGB")
            with _naming:
                name = self._free_name(Path(shown).stem, SUFFIXES.get(picture.format, f".{picture.format.lower()}"))
                part.rename(self.folder / "pictures" / name)
            small.save(self.folder / "thumbnails" / f"{name}.webp", format="WEBP", quality=85)
            upload = Upload(name, shown, width, height)
            with atomic_file(self.folder / "thumbnails" / f"{name}.json") as path:
                path.write_text(json.dumps(upload.__dict__), encoding="utf-8")
            return upload
        except UnreadablePicture as error:
            raise UserError(Problem(shown, error.found, error.fix)) from None
        finally:
            part.unlink(missing_ok=True)

    def _free_name(self, stem: str, suffix: str) -> str:
        taken = [path.stem for path in (self.folder / "pictures").iterdir()]
        if len(taken) >= MOST_PICTURES:
            raise UserError(Problem("the pictures", f"{MOST_PICTURES} are here already", "Take some away."))
        base = slugify(stem)[:60].strip("-") or "picture"
        if name_faults(base + suffix):  # `datasets` reads a meaning into words such as test and train
            base = re.sub(r"[aeiou]", "", base) if not name_faults(re.sub(r"[aeiou]", "", base) + suffix) else "picture"
        number = 1
        while (name := base if number == 1 else f"{base}-{number}") in taken:
            number += 1
        return name + suffix

    def uploads(self) -> dict[str, Upload]:
        """The pictures by their names."""
        found = {}
        for path in sorted((self.folder / "thumbnails").glob("*.json")):
            try:
                upload = Upload(**read_json(path))
            except (OSError, ValueError, TypeError):
                continue  # half written when the machine went down: the picture is asked for again
            if (self.folder / "pictures" / upload.name).is_file():
                found[upload.name] = upload
        return found

    def picture(self, name: str) -> Path:
        """The file of a picture. Raises KeyError where there is none of that name."""
        return self._file("pictures", name, "")

    def thumbnail(self, name: str) -> Path:
        """The small copy of a picture. Raises KeyError where there is none of that name."""
        return self._file("thumbnails", name, ".webp")

    def _file(self, place: str, name: str, suffix: str) -> Path:
        path = self.folder / place / f"{name}{suffix}"
        if not _NAME.fullmatch(name) or not path.is_file():
            raise KeyError(name)
        return path

    def remove(self, name: str) -> None:
        """Take a picture away. Raises KeyError where there is none of that name."""
        path = self.picture(name)
        for suffix in (".json", ".webp"):
            (self.folder / "thumbnails" / f"{name}{suffix}").unlink(missing_ok=True)
        path.unlink()

    def save(self, form: dict[str, Any]) -> None:
        """Keep what was written beside the pictures, for whoever opens the draft again."""
        with atomic_file(self.folder / "form.json") as path:
            path.write_text(json.dumps({**form, "saved": time.time()}), encoding="utf-8")

    def form(self) -> dict[str, Any]:
        """What was kept; empty where nothing was."""
        try:
            form = read_json(self.folder / "form.json")
            return form if isinstance(form, dict) else {}
        except (OSError, ValueError):
            return {}
