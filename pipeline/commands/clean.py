"""`morphline clean`: what may go from `.work`, and its going. Not a DVC stage: results never depend on it."""

import errno
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

WORK = Path(".work")
STUDIO = WORK / "studio"
DAY = 86_400.0
# What lies in them, a folder each, unless it is a finished adapter.
FOLDERS = {
    "adapters": "unfinished trainings",
    "pocket": "unfinished trainings",
    "baselines": "morphs without adapters",
    "previews": "first frames of morphs",
    "studio/drafts": "drafts of the studio",
    "studio/jobs": "logs of the studio",
}


@dataclass(frozen=True)
class Unused:
    """Something in `.work` that nothing has used for a while. kind: what it is, in the plural. size: in bytes."""

    kind: str
    path: Path
    size: int


def run(days: float, delete: bool) -> list[str]:
    """Find what nothing has used for `days` days, and delete it if asked; a line for each kind, and what they come to.

    What is deleted is made again where it is needed: pictures are encoded again, adapters trained again. What another
    process is training right now stays, and so does what a studio holds that serves the project.
    """
    found = list(find_unused(WORK, time.time() - days * DAY))
    with ExitStack() as held:
        served = _is_served(held)
        free = [item for item in found if not (served and item.path.is_relative_to(STUDIO))]
        gone = [item for item in free if _delete(item)] if delete else free
    lines = []
    for kind in sorted({item.kind for item in gone}):
        sizes = [item.size for item in gone if item.kind == kind]
        lines.append(f"{len(sizes)} {kind}, {readable(sum(sizes))}")
    total = readable(sum(item.size for item in gone))
    if not found:
        lines.append(f"nothing in {WORK} has been unused for {days:g} days")
    elif gone and delete:
        lines.append(f"freed {total}")
    elif gone:
        command = f"morphline clean --days {days:g} --delete"
        lines.append(f"{total} in {WORK} have been unused for {days:g} days: `{command}` frees them")
    if busy := len(found) - len(gone):
        lines.append(f"{busy} left alone: another process needs them")
    return lines


def find_unused(work: Path, before: float) -> Iterator[Unused]:
    """What was last used before that moment (seconds since 1970). Each use gives a file a new time of change."""
    for path in sorted(work.glob("latents/*.safetensors")):
        if path.stat().st_mtime < before:
            yield Unused("encoded pictures", path, path.stat().st_size)
    for folder in sorted(path for name in FOLDERS for path in work.glob(f"{name}/*") if path.is_dir()):
        files = [path for path in folder.rglob("*") if path.is_file()]
        if max((path.stat().st_mtime for path in files), default=folder.stat().st_mtime) < before:
            finished = (folder / "adapter.safetensors").exists()
            kind = "finished adapters" if finished else FOLDERS[folder.parent.relative_to(work).as_posix()]
            yield Unused(kind, folder, sum(path.stat().st_size for path in files))


def _is_served(held: ExitStack) -> bool:
    """Whether a studio serves the project: the jobs that wait there need their drafts. Else none can begin to until
    `held` is left."""
    lock = STUDIO / "studio.lock"
    if not STUDIO.is_dir():
        return False
    try:
        held.enter_context(FileLock(lock, timeout=0))
    except Timeout:
        return True
    except OSError:  # no room for a lock that is not there
        return lock.exists()
    return False


def _delete(item: Unused) -> bool:
    """Delete it, unless a process has its lock; whether it is gone."""
    if not item.path.is_dir():
        item.path.unlink(missing_ok=True)
        return True
    lock = item.path.with_name(f"{item.path.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            shutil.rmtree(item.path)
            lock.unlink(missing_ok=True)
    except Timeout:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or lock.exists():
            raise
        shutil.rmtree(item.path)  # whoever trains has made the lock, for which there is no room now
    return True


def readable(size: float) -> str:
    """A number of bytes for people: 12.3 MB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} bytes"
