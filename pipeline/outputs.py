"""Outputs that appear whole or not at all: written under a temporary name beside their place, then renamed."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import Problem, UserError


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new, empty folder that becomes `path` when the block succeeds; an existing `path` is then replaced.

    If the block raises, Ctrl-C included, the new folder is deleted and `path` is as it was before.
    Missing parent folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(path, "partial")
    partial.mkdir()
    try:
        yield partial
        _replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the name of a file to write, with the suffix of `path`, that becomes `path` when the block succeeds.

    If the block raises, Ctrl-C included, what was written is deleted and `path` is as it was before.
    Missing parent folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(path, "partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def require_output(path: Path, stage: str) -> Path:
    """`path`, an output of another stage.

    Raises:
        UserError: when it is not there, with the command that makes it.
    """
    if not path.exists():
        raise UserError(Problem(str(path), "it is not there yet", f"Run `dvc repro {stage}`."))
    return path


def mark_used(path: Path) -> None:
    """Give a file that is kept for later the present as its time of change, by which those long unused are found."""
    with suppress(OSError):  # where nothing may be written, nothing will be deleted either
        os.utime(path)


def _sibling(path: Path, purpose: str) -> Path:
    # On the same file system, so that renaming is atomic; hidden, so that nothing mistakes it for a result.
    return path.with_name(f".{path.stem[:100]}.{secrets.token_hex(8)}.{purpose}{path.suffix}")


def _replace(new: Path, path: Path) -> None:
    """Rename a folder over whatever is at `path`. A full one cannot be replaced in one step, so the old one is renamed
    first, and renamed back if that fails."""
    if not os.path.lexists(path):
        os.rename(new, path)
        return
    backup = _sibling(path, "old")
    os.rename(path, backup)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(backup, path)
        raise
    if backup.is_dir() and not backup.is_symlink():
        shutil.rmtree(backup)
    else:
        backup.unlink()
