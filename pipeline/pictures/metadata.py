"""Reading metadata.jsonl: its lines as rows, and every mistake in them."""

import errno
import json
import os
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from pipeline.errors import Problem, UserError
from pipeline.frames.prepared import prepared_name
from pipeline.inputs import MOST, open_plain
from pipeline.pictures.rows import ALLOWED, Fault, Row, escaped, misspelt_columns, name_faults, parse_object, parse_row

METADATA = "metadata.jsonl"

LONGEST_LINE = 1_000_000
"""Bytes of a row; a caption has some hundred."""

MOST_ROWS = 100_000
"""Lines that are read. A set of so many pictures is a mistake, or a file that is no metadata."""

# With cache.type symlink, DVC checks files out as links into its cache.
_DVC_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")

_SAVE, _MARK = "Save it as plain UTF-8 text", b"\xef\xbb\xbf"
_RESTORE = "Run `dvc pull`, if DVC tracks it, or put it there"


@dataclass(frozen=True)
class Line:
    """One line of metadata.jsonl. written: its file_name, as far as it can be read; name: the same, if it is valid;
    row: None if anything is wrong with the line; misspelt: columns that look like one of the row's, and which."""

    where: str
    written: str | None = None
    name: str | None = None
    row: Row | None = None
    misspelt: Mapping[str, str] = field(default_factory=dict)


def read_rows(folder: Path) -> tuple[Row, ...]:
    """The rows of `folder`/metadata.jsonl, in the order of the file. Pictures are not looked at.

    Raises:
        UserError: with every problem of the metadata, each with its line.
    """
    return tuple(stream_rows(folder))


def stream_rows(folder: Path) -> "Rows":
    """The same, one by one: for sets so large that all rows at once would fill the memory."""
    metadata = Metadata(folder)
    count = sum(1 for _ in metadata)
    if metadata.problems:
        raise UserError(*metadata.problems)
    return Rows(folder, count)


@dataclass(frozen=True)
class Rows:
    """The rows of metadata that is in order, read from the file each time one goes through them."""

    folder: Path
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Row]:
        for line in Metadata(self.folder):
            if line.row is None:  # somebody edits it right now
                raise UserError(Problem(line.where, "the line has changed while it was read", "Run the same again."))
            yield line.row


def read_metadata(folder: Path) -> tuple[list[Line], list[Problem]]:
    """The lines of `folder`/metadata.jsonl, valid or not, and every problem in them. Raises nothing for bad input."""
    metadata = Metadata(folder)
    return list(metadata), metadata.problems


class Metadata:
    """The lines of `folder`/metadata.jsonl, valid or not, read one by one each time one goes through them. Raises
    nothing for bad input.

    problems: all in the lines gone through last; those that lie between several lines are found when they end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / METADATA
        self.problems: list[Problem] = []

    def __iter__(self) -> Iterator[Line]:
        self.problems = [found] if (found := _missing_metadata(self.folder) or _content_problem(self.path)) else []
        if self.problems:
            return
        count, misspelt, names = 0, dict[str, Line](), array("Q")
        for line, problems in self._lines():
            self.problems += problems
            if line is None:
                continue
            count += 1
            for column in line.misspelt:
                misspelt.setdefault(column, line)
            if line.name is not None:
                names.append(_hash(line.name))
            yield line
        if not count:
            fix = "Write one row for each picture, or run `morphline add`."
            self.problems.append(Problem(str(self.path), "no rows", fix))
        if twice := {name for name, again in pairwise(sorted(names)) if name == again}:
            lines = (line for line, _ in self._lines() if line is not None and line.name is not None)
            self.problems += _collision_problems(line for line in lines if _hash(str(line.name)) in twice)
        self.problems += _misspelt_column_problems(misspelt.values())

    def _lines(self) -> Iterator[tuple[Line | None, list[Problem]]]:
        """Each line with its own problems; None for problems of no row."""
        count = 0
        with open_plain(self.path) as file:
            for number, line in enumerate(file, start=1):
                where = f"{self.path}:{number}"
                if number == 1 and line.startswith(_MARK):
                    found = "the file begins with a byte order mark"
                    yield None, [Problem(where, found, f"{_SAVE}, without the mark.")]
                    line = line.removeprefix(_MARK)
                if count == MOST_ROWS:
                    yield None, [Problem(where, f"more than {MOST_ROWS} rows", "Divide the set into several.")]
                    return
                if len(line) > LONGEST_LINE:
                    fix = f"Write one row a line, of at most {LONGEST_LINE} bytes."
                    yield Line(where), [Problem(where, f"a line of {len(line)} bytes", fix)]
                elif line.strip():
                    read, faults = _read_line(where, line.rstrip(b"\n"))
                    yield read, [Problem(where, *fault) for fault in faults]
                else:
                    continue
                count += 1


def leaves_folder(folder: Path, name: str) -> bool:
    """Whether a file of a raw set is a link to one elsewhere, DVC's cache apart."""
    try:
        target = (folder / name).resolve()
        return not target.is_relative_to(folder.resolve()) and not _DVC_CACHE.search(target.as_posix())
    except (OSError, RuntimeError):  # links in a circle
        return True


def link_fault(name: str) -> Fault:
    """What is said of such a link."""
    return f"{escaped(name)} is a link that leaves the folder", "Put the picture itself there."


def casefolded(name: str) -> str:
    """The name as a file system compares it that ignores case and Unicode normalization forms."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _missing_metadata(folder: Path) -> Problem | None:
    path = folder / METADATA
    # os.path, unlike pathlib, returns False where access is denied.
    if not os.path.isdir(folder):
        found = "not a folder" if os.path.lexists(folder) else "the folder is missing"
        return Problem(str(folder), found, f"{_RESTORE}, or make it with `morphline add {folder.name} PICTURES...`.")
    if not os.path.lexists(path):
        others = [name for name in ("metadata.csv", "metadata.parquet") if os.path.isfile(folder / name)]
        fix = f"Convert {others[0]} to it: " if others else f"{_RESTORE}: "
        fix += 'one JSON object a line, {"file_name": "dawn.jpg", "text": "a mountain lake at dawn"}.'
        return Problem(str(path), "the file is missing", fix)
    if not os.path.isfile(path):
        return Problem(str(path), "not a file", "Put the captions there, one JSON object a line.")
    if leaves_folder(folder, METADATA):
        return Problem(str(path), "a link that leaves the folder", "Put the file itself there.")
    return None


def _content_problem(path: Path) -> Problem | None:
    """What keeps the file from being read as text at all."""
    try:
        with open_plain(path) as file:
            if os.fstat(file.fileno()).st_size > MOST:
                raise OSError(errno.EINVAL, f"larger than {MOST / 2**20:g} MB")
            if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                return Problem(f"{path}:1", "UTF-16 text", f"{_SAVE}.")
            file.seek(0)
            number = 1
            while part := file.read(2**20):
                if b"\0" in part:
                    number += part[: part.index(b"\0")].count(b"\n")
                    return Problem(f"{path}:{number}", "a binary file, not text", f"{_SAVE}, one JSON object a line.")
                number += part.count(b"\n")
    except OSError as error:
        fix = "Put a readable text there, one JSON object a line."
        return Problem(str(path), f"the file cannot be read ({error.strerror})", fix)
    return None


def _hash(name: str) -> int:
    """Of the name that the picture will have once prepared, as a file system that ignores case compares it."""
    return hash(casefolded(prepared_name(name))) & (2**64 - 1)


def _read_line(where: str, line: bytes) -> tuple[Line, list[Fault]]:
    try:
        source = line.decode()
    except UnicodeDecodeError as error:
        found = f"not UTF-8 text (byte 0x{line[error.start]:02x} in column {error.start + 1})"
        written = _find_file_name(line.decode(errors="replace"))
        return Line(where, written), [(found, "Save the file as plain UTF-8 text.")]
    columns = parse_object(source)
    if isinstance(columns, tuple):
        return Line(where, _find_file_name(source)), [columns]
    row, faults = parse_row(columns)
    written = columns.get("file_name")
    if not isinstance(written, str):
        return Line(where), faults
    name = None if name_faults(written) else written
    return Line(where, written, name, row, misspelt_columns(columns)), faults


def _find_file_name(broken: str) -> str | None:
    """The file name on a line that is not valid JSON, so that its picture is not reported as one without a row."""
    match = re.search(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', broken)
    try:
        return str(json.loads(match[1])) if match else None
    except ValueError:
        return None


def _collision_problems(lines: Iterable[Line]) -> Iterator[Problem]:
    """Two rows of one picture, and pictures that would be prepared under one name (also where case is ignored)."""
    first: dict[str, Line] = {}
    for line in lines:
        if line.name is None:
            continue
        earlier = first.setdefault(casefolded(prepared_name(line.name)), line)
        if earlier is line or earlier.name is None:
            continue
        number = earlier.where.rpartition(":")[2]
        if earlier.name == line.name:
            yield Problem(
                line.where, f"{escaped(line.name)} has a row on line {number} already", "Remove one of the two."
            )
        else:
            found = (
                f"{escaped(line.name)} and {escaped(earlier.name)} of line {number} would both be prepared as one file"
            )
            yield Problem(line.where, f"{found}, {prepared_name(earlier.name)}", "Rename one of the two pictures.")


def _misspelt_column_problems(lines: Iterable[Line]) -> Iterator[Problem]:
    """Each misspelt column once, where it occurs first: imagefolders have the same columns on every line."""
    reported = set()
    for line in lines:
        for column, meant in line.misspelt.items():
            if column not in reported:
                reported.add(column)
                fix = f"Rename it to {meant!r}, which is {ALLOWED[meant]}, or to something less like it."
                yield Problem(line.where, f"the column {escaped(column)} is not read", fix)


def captions_of(folder: Path) -> list[str]:
    """The captions of a set; none where they cannot be read, which `find_problems` reports."""
    try:
        return [row.text for row in stream_rows(folder)]
    except UserError:
        return []
