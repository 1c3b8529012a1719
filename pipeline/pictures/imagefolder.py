"""Reading and checking a raw set: a folder of pictures with a metadata.jsonl beside them."""

import difflib
import json
import os
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pipeline.errors import Problem
from pipeline.parallel import count_workers, parallel_map
from pipeline.pictures.metadata import METADATA, Line, folded, prepared_name, read_metadata, read_rows
from pipeline.pictures.reading import SUFFIXES, UnreadablePicture, load_picture
from pipeline.pictures.rows import Fault, Row, escaped, printable

__all__ = ["METADATA", "Row", "find_problems", "prepared_name", "read_rows"]

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
    if not os.path.isdir(folder):
        return problems
    if caption_length:
        problems += _cut_off(lines, caption_length)
    try:
        entries = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        return [*problems, Problem(str(folder), f"the folder cannot be read ({error.strerror})", "Make it readable.")]
    problems += _missing_and_extra(folder, entries, lines)
    problems += _unreadable(folder, entries, lines, max_megapixels, workers)
    return problems


def _cut_off(lines: Iterable[Line], caption_length: CaptionLength) -> Iterator[Problem]:
    for line in lines:
        tokens, allowed = caption_length(line.row.text) if line.row else (0, 0)
        if tokens > allowed:
            found = f"the caption has {tokens} tokens, the base reads {allowed}"
            yield Problem(line.where, found, f"Shorten it by {tokens - allowed} or more.")


def _missing_and_extra(folder: Path, entries: set[str], lines: Iterable[Line]) -> Iterator[Problem]:
    rows = {line.name: line.where for line in lines if line.name is not None}
    written = {line.written for line in lines}
    extra = [name for name in sorted(entries) if _is_picture(name) and name not in written]
    extra = [name for name in extra if not os.path.isdir(folder / name)]
    meant = set()
    for name, near in _near_names([name for name in rows if name not in entries], extra):
        meant.add(near)
        yield Problem(rows[name], f"the picture {escaped(name)} is missing", _mend_missing(folder, name, near))
    for name in (name for name in rows if name in entries):
        if _leaves(folder, name):
            fix = "Put the picture itself there."
            yield Problem(rows[name], f"{escaped(name)} is a link that leaves the folder", fix)
        elif not os.path.isfile(folder / name):
            yield Problem(rows[name], f"{escaped(name)} is not a file", "Put the picture there.")
    for name in extra:
        if name not in meant:
            fix = f'Add a row for it, {{"file_name": {json.dumps(name)}, "text": "..."}}, or move it away.'
            yield Problem(printable(folder / name), f"the picture has no row in {METADATA}", fix)
    for name in sorted(entries):
        if os.path.isdir(folder / name) and not name.startswith(".") and _holds_pictures(folder / name):
            fix = "Move its pictures beside metadata.jsonl and write a row for each, or move it away."
            yield Problem(printable(folder / name), "a subfolder with pictures; a set is one flat folder", fix)


def _near_names(missing: Sequence[str], extra: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Each missing name with the picture without a row that it probably means."""
    same = {folded(name): name for name in extra}
    few = extra if len(missing) * len(extra) <= 10_000 else ()  # comparing all with all takes too long for many
    for name in missing:
        alike = difflib.get_close_matches(name, few, n=1, cutoff=0.8)
        yield name, same.get(folded(name)) or next(iter(alike), None)


def _mend_missing(folder: Path, name: str, near: str | None) -> str:
    if near is None:
        dvc = "run `dvc pull`" if os.path.isfile(folder / f"{name}.dvc") else "put the picture there"
        return f"Correct the name, {dvc}, or remove the row."
    if unicodedata.normalize("NFC", near) == unicodedata.normalize("NFC", name):
        # They look the same on the screen, so only a command can fix it.
        move = shlex.join(["mv", "--", str(folder / near), str(folder / name)])
        return f"The folder has it in another Unicode spelling: `{move}`."
    return f"Did you mean {escaped(near)}?"


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
    folder: Path, entries: set[str], lines: Iterable[Line], max_megapixels: float, workers: int | None
) -> Iterator[Problem]:
    named = {line.name: line.where for line in lines if line.name is not None and line.name in entries}
    named = {
        name: where for name, where in named.items() if os.path.isfile(folder / name) and not _leaves(folder, name)
    }
    processes = count_workers(workers, len(named), alone_below=51)
    paths = [folder / name for name in named]
    label = f"check {folder.name}" if len(paths) > 50 else None
    faults = parallel_map(partial(_picture_fault, max_megapixels=max_megapixels), paths, processes, label)
    for (name, where), fault in zip(named.items(), faults, strict=True):
        if fault:
            yield Problem(where, f"{escaped(name)}: {fault[0]}", fault[1])


def _picture_fault(path: Path, max_megapixels: float) -> Fault | None:
    try:
        load_picture(path, max_megapixels)
    except UnreadablePicture as error:
        return error.found, error.fix
    return None
