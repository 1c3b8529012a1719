"""Outputs that appear whole or not at all, and the outputs of earlier stages, which may be damaged."""

import errno
import os
import re
import secrets
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import Problem, UserError

# Which stage makes what lies where; the key is the name of the folder or file there.
_MADE = {
    "data/prepared": "prepare", "models/adapters": "train", "reports/curves/sets": "train", "reports/samples": "sample",
    "data/morphs": "morph", "reports/metrics": "evaluate", "reports/curves/morphs": "evaluate",
    "reports/smoothness": "evaluate", "data/edits": "edit",
}  # fmt: skip
# What the machine is to blame for, and no file.
_WORLD = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
)  # fmt: skip


def require_room(*folders: Path) -> None:
    """Raises OSError that names the first of the folders, of those there are, on a disk without room for a megabyte:
    for what writes there and does not say where."""
    for folder in filter(Path.is_dir, folders):
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(1024 * 1024))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(error.errno, os.strerror(error.errno), str(folder.resolve())) from None


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new, empty folder that becomes `path` when the block succeeds; an existing `path` is then replaced.

    If the block raises, Ctrl-C included, the new folder is deleted and `path` is as it was before; so are folders that
    a process which was killed has left there. Missing parent folders are made. An OSError that names no file, as a full
    disk's, gets the name of `path`.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path)
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

    If the block raises, Ctrl-C included, what was written is deleted and `path` is as it was before; so is what a
    process that was killed has left there. Missing parent folders are made. An OSError that names no file, as a full
    disk's, gets the name of `path`.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path)
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


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """While the block reads `path`: for whatever a parser raises where it is damaged.

    Raises:
        UserError: that names the file, and the command that makes it again if a stage does.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # each library has its own for each kind of damage
        if machine := of_the_machine(error):
            raise machine from error
        found = "it is missing" if isinstance(error, FileNotFoundError) else f"damaged ({_reason(error)})"
        raise UserError(Problem(str(path), found, _again(path))) from error


def _again(path: Path) -> str:
    for place, stage in _MADE.items():
        if found := re.search(rf"(?:^|/){place}/([a-z0-9-]+)", path.as_posix()):
            return f"Run `dvc repro {stage}@{found[1]}`, which makes it again."
    return "Restore it, or use another file."


def of_the_machine(error: BaseException | None) -> OSError | None:
    """The system's own error at the bottom of a library's, if the machine is to blame."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _WORLD:
            return error
        error = error.__cause__ or error.__context__
    return None


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the output in errors of the system, which name a file that only we know, the source of a copy, or none."""
    try:
        yield
    except OSError as error:
        number, file = error.errno, error.filename2 or error.filename
        if isinstance(error, shutil.Error):  # the copies of a folder's files, each with words of its own
            found = re.search(r"\[Errno (\d+)\]", str(error))
            number, file = int(found[1]) if found else errno.EIO, None
        ours = any(".partial" in str(name) for name in (error.filename, error.filename2))  # one of them is enough
        if number is not None and (file is None or ours):
            # A new one: those of some libraries are of kinds whose file cannot be changed.
            raise OSError(number, error.strerror or os.strerror(number), str(path)) from error
        raise
    except Exception as error:  # safetensors wraps the system's words into an error of its own
        told = re.search(r"\(os error (\d+)\)", str(error))
        if type(error).__name__ == "SafetensorError" and told:
            raise OSError(int(told[1]), os.strerror(int(told[1])), str(path)) from error
        raise


# On the same file system, so that renaming is atomic; hidden, so that nothing mistakes it for a result. With machine
# and process, so that what a killed one has left is known for that.
def _sibling(path: Path, purpose: str) -> Path:
    return path.with_name(f"{_stem(path)}{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.{purpose}{_suffix(path)}")


def _stem(path: Path) -> str:
    return f".{os.fsencode(path.stem)[:100].decode(errors='ignore')}."


def _suffix(path: Path) -> str:
    return path.suffix if len(path.suffix) < 20 else ""


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _clear(path: Path) -> None:
    """Remove what processes of this machine that are no more have left of earlier tries at `path`.

    One that was killed between the two renames of `_replace` has left the old output under another name: it goes back.
    """
    start, end = re.escape(_stem(path)), re.escape(_suffix(path))
    left = re.compile(rf"{start}{_machine()}-(\d+)-[0-9a-f]{{16}}\.(partial|old){end}")
    for name in os.listdir(path.parent):
        found = left.fullmatch(name)
        if not found or _is_alive(int(found[1])):
            continue
        leftover = path.with_name(name)
        if found[2] == "old" and not os.path.lexists(path):
            os.rename(leftover, path)
        elif leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


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
