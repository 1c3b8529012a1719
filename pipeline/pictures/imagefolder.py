"""Reading and checking a raw set: a folder of pictures with a metadata.jsonl beside them."""

import difflib
import json
import os
import shlex
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.errors import Problem
from pipeline.pictures.captions import CaptionLength, length_problems
from pipeline.pictures.integrity import Files, find_faults
from pipeline.pictures.metadata import METADATA, Line, Metadata, casefolded, leaves_folder, link_fault
from pipeline.pictures.reading import SUFFIXES, size_of
from pipeline.pictures.rows import escaped, printable


def find_problems(
    folder: Path,
    *,
    max_megapixels: float,
    caption_length: CaptionLength | None = None,
    workers: int | None = None,
    memory: Path | None = None,
) -> list[Problem]:
    """Everything that is wrong with a raw set, its metadata first, then its pictures. Raises nothing for bad input.

    Every picture is decoded, over `workers` processes (None: one a core) and with a progress bar where there are more
    than 50, unless the file `memory` knows its content as whole; one that is larger than `max_megapixels` is refused by
    its header. With `caption_length`, captions that the base would truncate are reported too.
    """
    lines = Metadata(folder)
    deque(lines, maxlen=0)
    problems = lines.problems
    if not os.path.isdir(folder):
        return problems
    if caption_length:
        problems += _long_captions(lines, caption_length)
    try:
        entries = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        return [*problems, Problem(str(folder), f"the folder cannot be read ({error.strerror})", "Make it readable.")]
    problems += _missing_and_extra(folder, entries, lines)
    problems += _picture_problems(folder, entries, lines, max_megapixels, workers, memory)
    return problems


def _long_captions(lines: Iterable[Line], caption_length: CaptionLength) -> Iterator[Problem]:
    for line in lines:
        if line.row:
            yield from length_problems(line.where, line.row.text, caption_length)


def _missing_and_extra(folder: Path, entries: set[str], lines: Iterable[Line]) -> Iterator[Problem]:
    without_row = {name for name in entries if _is_picture(name)}
    missing: dict[str, str] = {}
    for line in lines:
        without_row -= {line.written, line.row.mask if line.row else None}
        if line.name is not None and line.name not in entries:
            missing[line.name] = line.where
    extra = [name for name in sorted(without_row) if not os.path.isdir(folder / name)]
    suggested = set()
    for name, near in _closest_names(list(missing), extra):
        suggested.add(near)
        yield Problem(missing[name], f"the picture {escaped(name)} is missing", _fix_missing(folder, name, near))
    told = set[str]()  # once, where a picture has two rows
    for line in lines:
        if line.name is None or line.name not in entries or line.name in told:
            continue
        if leaves_folder(folder, line.name):
            yield Problem(line.where, *link_fault(line.name))
        elif not os.path.isfile(folder / line.name):
            yield Problem(line.where, f"{escaped(line.name)} is not a file", "Put the picture there.")
        else:
            continue
        told.add(line.name)
    for line in lines:
        mask = line.row.mask if line.row else None
        if mask is not None and mask not in entries:
            yield Problem(line.where, f"the mask {escaped(mask)} is missing", "Correct the name, or put it there.")
        elif mask is not None and leaves_folder(folder, mask):
            yield Problem(line.where, *link_fault(mask))
        elif mask is not None and not os.path.isfile(folder / mask):
            yield Problem(line.where, f"the mask {escaped(mask)} is not a file", "Put the picture there.")
    for name in extra:
        if name not in suggested:
            fix = f'Add a row for it, {{"file_name": {json.dumps(name)}, "text": "..."}}, or move it away.'
            yield Problem(printable(folder / name), f"the picture has no row in {METADATA}", fix)
    for name in sorted(entries):
        if os.path.isdir(folder / name) and not name.startswith(".") and _contains_pictures(folder / name):
            fix = "Move its pictures beside metadata.jsonl and write a row for each, or move it away."
            yield Problem(printable(folder / name), "a subfolder with pictures; a set is one flat folder", fix)


def _closest_names(missing: Sequence[str], extra: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Each missing name, with the most similar name of a picture that has no row."""
    same = {casefolded(name): name for name in extra}
    candidates = extra if len(missing) * len(extra) <= 10_000 else ()  # comparing all with all takes too long for many
    for name in missing:
        similar = difflib.get_close_matches(name, candidates, n=1, cutoff=0.8)
        yield name, same.get(casefolded(name)) or next(iter(similar), None)


def _fix_missing(folder: Path, name: str, near: str | None) -> str:
    if near is None:
        restore = "run `dvc pull`" if os.path.isfile(folder / f"{name}.dvc") else "put the picture there"
        return f"Correct the name, {restore}, or remove the row."
    if unicodedata.normalize("NFC", near) == unicodedata.normalize("NFC", name):
        # They look the same on the screen, so only a command can fix it.
        move = shlex.join(["mv", "--", str(folder / near), str(folder / name)])
        return f"The folder has it in another Unicode spelling: `{move}`."
    return f"Did you mean {escaped(near)}?"


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def _contains_pictures(folder: Path) -> bool:
    return any(_is_picture(name) for _, _, names in os.walk(folder) for name in names)


def _picture_problems(
    folder: Path,
    entries: set[str],
    lines: Iterable[Line],
    max_megapixels: float,
    workers: int | None,
    memory: Path | None,
) -> Iterator[Problem]:
    # Names, not lines: of a large set, all of which are many megabytes.
    masks: dict[str, tuple[str, str]] = {}
    for line in lines:
        if line.row and line.row.mask in entries:
            masks[str(line.row.mask)] = (line.row.file_name, line.where)
    pictures = (line.name for line in lines if line.name is not None and line.name in entries)
    names = [*masks, *(name for name in pictures if name not in masks)]
    files = Files(folder, [name for name in names if os.path.isfile(folder / name) and not leaves_folder(folder, name)])
    faults = find_faults(files, max_megapixels, label=folder.name, workers=workers, memory=memory)
    faulty = {path.name for path in faults}
    where = {name: place for name, (_, place) in masks.items() if name in faulty}
    where |= {line.name: line.where for line in lines if line.name in faulty}
    for path, (found, fix) in faults.items():
        yield Problem(where[path.name], f"{escaped(path.name)}: {found}", fix)
    whole = set(files.names) - faulty if masks else set()
    for mask, (picture, place) in masks.items():
        if {mask, picture} <= whole:
            (wide, high), (width, height) = (size_of(folder / name, max_megapixels) for name in (mask, picture))
            if (wide, high) != (width, height):
                found = f"the mask {escaped(mask)} has {wide}x{high} pixels, the picture {width}x{height}"
                yield Problem(place, found, "Make it as large as the picture as it is seen.")
