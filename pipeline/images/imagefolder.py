"""Reading and checking a raw set: a folder of pictures with a metadata.jsonl beside them."""

import difflib
import json
import os
import re
import shlex
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pipeline.errors import Problem
from pipeline.images.metadata import METADATA, Line, folded, prepared_name, read_metadata, read_rows
from pipeline.images.parallel import in_order, with_progress, worker_count
from pipeline.images.pictures import SUFFIXES, UnreadablePicture, load_picture
from pipeline.images.rows import (
    Fault,
    Row,
    printable,
    shown,
)

__all__ = ["METADATA", "Row", "find_problems", "prepared_name", "read_rows"]

METADATA = "metadata.jsonl"

CaptionLength = Callable[[str], tuple[int, int]]
"""A caption to (tokens it has, tokens that the base reads)."""

# With cache.type symlink, DVC's own checkout is links into its cache.
_DVC_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")


def find_problems(
    folder: Path, *, max_megapixels: float, caption_length: CaptionLength | None = None, workers: int | None = None
) -> list[Problem]:
    """Everything that is wrong with a raw set, its metadata first, then its pictures. Raises nothing for bad input.

    Every picture is decoded, over `workers` processes (None: one a core) and with a progress bar where there are more
    than 50; one that is larger than `max_megapixels` is refused by its header. With `caption_length`, captions that
    the base would cut off are told too.
    """
    lines, problems = read_metadata(folder)
    if not folder.is_dir():
        return problems
    if caption_length:
        for line in lines:
            if line.row:
                tokens, allowed = caption_length(line.row.text)
                if tokens > allowed:
                    found = f"the caption has {tokens} tokens, the base reads {allowed}"
                    problems.append(Problem(line.where, found, f"Shorten it by {tokens - allowed} tokens or more."))
    try:
        entries = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        return [*problems, Problem(str(folder), f"the folder cannot be read ({error.strerror})", "Make it readable.")]
    problems += _missing_and_extra(folder, entries, lines)
    problems += _unreadable(folder, set(entries), lines, max_megapixels, workers)
    return problems


def _missing_and_extra(folder: Path, entries: Sequence[str], lines: Sequence[Line]) -> Iterator[Problem]:
    named = {line.name: line for line in lines if line.name is not None}
    pictures = [name for name in entries if _is_picture(name) and name not in named and not (folder / name).is_dir()]
    meant = set()
    for name, line in named.items():
        if name not in entries:
            near = _near(name, pictures)
            meant.add(near)
            yield Problem(line.where, f"the picture {shown(name)} is missing", _mend_missing(folder, name, near))
        elif _leaves(folder, name):
            yield Problem(
                line.where, f"{shown(name)} is a link that leaves the folder", "Put the picture itself there."
            )
        elif not (folder / name).is_file():
            yield Problem(line.where, f"{shown(name)} is not a file", "Put the picture there.")
    broken = [line.source for line in lines if line.row is None]
    for name in pictures:
        if name not in meant and not any(name in line or json.dumps(name)[1:-1] in line for line in broken):
            mend = f'Add a row for it, {{"file_name": {json.dumps(name)}, "text": "..."}}, or move it away.'
            yield Problem(printable(folder / name), f"the picture has no row in {METADATA}", mend)
    for name in entries:
        if (folder / name).is_dir() and not name.startswith(".") and _holds_pictures(folder / name):
            mend = "Move its pictures beside metadata.jsonl and write a row for each, or move it away."
            yield Problem(printable(folder / name), "a subfolder with pictures; a set is one flat folder", mend)


def _mend_missing(folder: Path, name: str, near: str | None) -> str:
    if near is None:
        dvc = "run `dvc pull`" if (folder / f"{name}.dvc").exists() else "put it there"
        return f"Correct the name, {dvc}, or remove the row."
    if unicodedata.normalize("NFC", near) == unicodedata.normalize("NFC", name):
        # They look the same on the screen, so only a command can mend it.
        move = shlex.join(["mv", "--", str(folder / near), str(folder / name)])
        return f"The folder has it in another Unicode spelling: `{move}`."
    return f"Did you mean {shown(near)}?"


def _near(name: str, pictures: Sequence[str]) -> str | None:
    same = [other for other in pictures if folded(other) == folded(name)]
    return next(iter(same or difflib.get_close_matches(name, pictures, n=1, cutoff=0.8)), None)


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def _holds_pictures(folder: Path) -> bool:
    return any(_is_picture(name) for _, _, names in os.walk(folder) for name in names)


def _leaves(folder: Path, name: str) -> bool:
    try:
        target = (folder / name).resolve()
        return not target.is_relative_to(folder.resolve()) and not _DVC_CACHE.search(target.as_posix())
    except (OSError, RuntimeError):  # links in a circle
        return True


def _unreadable(
    folder: Path, entries: Container[str], lines: Iterable[Line], max_megapixels: float, workers: int | None
) -> Iterator[Problem]:
    named = {line.name: line.where for line in lines if line.name is not None and line.name in entries}
    named = {name: where for name, where in named.items() if (folder / name).is_file() and not _leaves(folder, name)}
    processes = worker_count(workers, len(named), alone_below=51)
    faults: Iterator[Fault | None] = in_order(
        partial(_picture_fault, max_megapixels=max_megapixels), (folder / name for name in named), processes
    )
    if len(named) > 50:
        faults = with_progress(faults, len(named), f"check {folder.name}")
    for (name, where), fault in zip(named.items(), faults, strict=True):
        if fault:
            yield Problem(where, f"{shown(name)}: {fault[0]}", fault[1])


def _picture_fault(path: Path, max_megapixels: float) -> Fault | None:
    try:
        load_picture(path, max_megapixels)
    except UnreadablePicture as error:
        return error.found, error.mend
    return None
