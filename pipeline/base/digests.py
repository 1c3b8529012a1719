"""Digests of files, computed once: what a file's content was is remembered by its path, size and time of change."""

import functools
import hashlib
import json
import time
from pathlib import Path

from pipeline.outputs import atomic_file

MEMORY = Path(".work/digests.json")
"""Path to [size, time of change in ns, inode, SHA-256]. May be deleted; a damaged one counts as empty."""

SETTLED = 2.0  # seconds: a file changed again within its file system's resolution of time would look unchanged


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    stat = path.stat()
    return _sha256(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, changed: int, inode: int) -> str:
    mark = [size, changed, inode]
    known = _remembered().get(str(path))
    if isinstance(known, list) and known[:3] == mark and len(known) == 4:
        return str(known[3])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if size > 1_000_000 and time.time() - changed / 1e9 > SETTLED:  # the small ones are read as fast as the memory
        _remember(path, [*mark, digest])
    return digest


def _remembered() -> dict[str, object]:
    try:
        found = json.loads(MEMORY.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(path: Path, entry: list[object]) -> None:
    if not MEMORY.parent.is_dir():
        return  # no project, and nothing to be left behind
    # Two processes at once may forget each other's entries, which are made again.
    with atomic_file(MEMORY) as partial:
        partial.write_text(json.dumps({**_remembered(), str(path): entry}), encoding="utf-8")
