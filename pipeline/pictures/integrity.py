"""Which picture files are whole. The same content is decoded once and then known by its SHA-256."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar, overload

import PIL

from pipeline.inputs import open_plain
from pipeline.outputs import atomic_file
from pipeline.parallel import count_workers, parallel_map
from pipeline.pictures.reading import UnreadablePicture, load_picture
from pipeline.pictures.rows import Fault

Result = TypeVar("Result")

_MANY = 51
"""Fewer pictures are read in one process and without a progress bar."""


@dataclass(frozen=True)
class Files(Sequence[Path]):
    """Files of a folder, by their names: a path is made when it is asked for, which takes a fifth of the memory."""

    folder: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, number: int) -> Path: ...
    @overload
    def __getitem__(self, number: slice) -> "Files": ...
    def __getitem__(self, number: int | slice) -> "Path | Files":
        if isinstance(number, slice):
            return Files(self.folder, self.names[number])
        return self.folder / self.names[number]


@dataclass(frozen=True)
class Chosen(Sequence[Path]):
    """Some of the files of a sequence, by their numbers there."""

    files: Sequence[Path]
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, number: int) -> Path: ...
    @overload
    def __getitem__(self, number: slice) -> "Chosen": ...
    def __getitem__(self, number: int | slice) -> "Path | Chosen":
        if isinstance(number, slice):
            return Chosen(self.files, self.rows[number])
        return self.files[self.rows[number]]


def find_faults(
    paths: Sequence[Path], max_megapixels: float, *, label: str, workers: int | None = None, memory: Path | None = None
) -> dict[Path, Fault]:
    """The files among `paths` that are not whole pictures of at most `max_megapixels`, and what is wrong with each.

    memory: a file that keeps the digests of whole pictures from one call to the next. Only content counts, never a time
    stamp, and only for the same limit, the same code of this room and the same Pillow. Where the file is missing or
    damaged, or cannot be written, all pictures are decoded again.
    """
    digests = list(_map(_digest, paths, workers, f"hash {label}"))
    key = f"{_code_digest()} {max_megapixels!r}"
    known = _read_memory(memory, key) if memory else frozenset()
    whole = {digest for digest in digests if digest in known}
    unknown = Chosen(paths, [row for row, digest in enumerate(digests) if digest not in known])
    faults = {}
    results = _map(partial(_inspect, max_megapixels=max_megapixels), unknown, workers, f"check {label}")
    for row, (fault, digest) in zip(unknown.rows, results, strict=True):
        if fault:
            faults[paths[row]] = fault
        elif digest and digest == digests[row]:  # else it changed meanwhile: which content was decoded?
            whole.add(digest)
    if memory and whole != known:
        _write_memory(memory, key, {digest for digest in whole if digest})
    return faults


def _map(
    function: Callable[[Path], Result], paths: Sequence[Path], workers: int | None, label: str
) -> Iterator[Result]:
    processes = count_workers(workers, len(paths), alone_below=_MANY)
    return parallel_map(function, paths, processes, label if len(paths) >= _MANY else None)


def _digest(path: Path) -> bytes | None:
    try:
        with open_plain(path) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None  # decoding it reports what is wrong


def _inspect(path: Path, max_megapixels: float) -> tuple[Fault | None, bytes | None]:
    """What is wrong with a picture, if anything, and the digest of the file after it was decoded."""
    try:
        load_picture(path, max_megapixels)
    except UnreadablePicture as error:
        return (error.found, error.fix), None
    return None, _digest(path)


@cache
def _code_digest() -> str:
    """Of everything that decides whether a picture can be read: this room's code and Pillow."""
    code = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"\0".join([PIL.__version__.encode(), *code])).hexdigest()


def _read_memory(memory: Path, key: str) -> frozenset[bytes]:
    try:
        with memory.open(encoding="utf-8") as lines:
            if next(lines, "").rstrip("\n") != key:
                return frozenset()
            return frozenset(bytes.fromhex(line) for line in lines)
    except (OSError, ValueError):  # missing, not UTF-8, or damaged
        return frozenset()


def _write_memory(memory: Path, key: str, whole: set[bytes]) -> None:
    try:
        with atomic_file(memory) as path, path.open("w", encoding="utf-8", newline="\n") as file:
            file.write(f"{key}\n")
            file.writelines(f"{digest.hex()}\n" for digest in sorted(whole))
    except OSError:
        pass
