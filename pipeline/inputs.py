"""Files from outside, which may be anything: only plain ones of bounded size are read, and JSON of any depth is safe.

Whatever is wrong with a file is an OSError with its name and, in `strerror`, words for people; whatever is wrong with
JSON is a ValueError. Nothing here waits for a pipe or reads a device that never ends.
"""

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

MOST = 64 * 2**20
"""Bytes of the largest text that is read: a vocabulary has three million, a row of metadata some hundred."""


def open_plain(path: Path) -> BufferedReader:
    """A file opened for reading.

    Raises:
        OSError: when it is missing, not readable, or no plain file: a folder, pipe, socket or device.
    """
    # Without O_NONBLOCK, opening a pipe waits until somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"a {_kind(mode)}, not a file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_plain(path: Path, most: int = MOST) -> bytes:
    """The content of a file.

    Raises:
        OSError: as `open_plain` does, and for more than `most` bytes.
    """
    with open_plain(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most / 2**20:g} MB", str(path))
    return content


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: as `read_plain` does.
        ValueError: for anything that is not JSON, or that nobody writes: brackets in thousands, numbers of as many
            digits.
    """
    try:
        return json.loads(read_plain(path).decode("utf-8"))
    except RecursionError:
        raise ValueError("brackets within brackets, too many of them") from None


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")
