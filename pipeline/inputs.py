"""Files from outside, which may be anything: only plain ones of bounded size are read, JSON and YAML of bounded depth.

Whatever is wrong with a file is an OSError with its name and, in `strerror`, words for people; whatever is wrong with
its text is a ValueError. Nothing here waits for a pipe or reads a device that never ends.
"""

import errno
import json
import os
import re
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
        raise OSError(errno.EINVAL, f"larger than {most / 2**20:g} MB", str(path))
    return content


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: as `read_plain` does.
        ValueError: as `parse_json` does, and for a text that is not UTF-8.
    """
    return parse_json(read_plain(path).decode("utf-8"))


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: for anything that is not JSON, or that nobody writes: brackets in thousands, numbers of as many
            digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("brackets within brackets, too many of them") from None


class BadYaml(ValueError):
    """A text that is no YAML, or none that anybody writes. line: where, from 1; None where that is not known."""

    def __init__(self, found: str, line: int | None = None) -> None:
        super().__init__(found)
        self.line = line


def parse_yaml(text: str, nodes: int = 50_000, depth: int = 50) -> Any:
    """The value of a YAML text, without tags that make objects.

    Raises:
        BadYaml: for anything else, for control characters, and for more than so many nodes, an alias counted as what it
            stands for, or more than so many within each other: small texts of such kinds take minutes and gigabytes.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        _bound_yaml(text, nodes, depth)
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        found = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise BadYaml(f"not valid YAML ({found})", mark.line + 1 if mark else None) from None
    except BadYaml:
        raise
    except Exception as error:  # dates, numbers and tags that do not fit their values fail in many ways
        raise BadYaml(f"a value that cannot be read ({type(error).__name__}: {error})") from None


def _bound_yaml(text: str, nodes: int, depth: int) -> None:
    """Look at a text as a stream of events, which makes nothing of it."""
    from ruamel.yaml import YAML

    open_sizes, anchors, open_anchors = [0], dict[str, int](), list[str | None]()
    for event in YAML(typ="safe", pure=True).parse(text):
        kind, line = type(event).__name__, event.start_mark.line + 1
        anchor = getattr(event, "anchor", None)
        if kind.endswith("StartEvent") and kind[:3] in ("Seq", "Map"):
            open_sizes.append(1)
            open_anchors.append(anchor)
            if len(open_sizes) > depth:
                raise BadYaml(f"more than {depth} brackets or indentations within each other", line)
            continue
        size = 0
        if kind == "ScalarEvent":
            size = 1
            if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", event.value):
                raise BadYaml("a control character", line)
            if event.implicit[0] and re.fullmatch(r"[-+]?[0-9_]{1000,}", event.value):
                raise BadYaml(f"a number of {len(event.value)} digits", line)
        elif kind == "AliasEvent":
            if anchor not in anchors:
                raise BadYaml(f"the alias *{anchor} names nothing before it", line)
            size = anchors[anchor]
        elif kind.endswith("EndEvent") and kind[:3] in ("Seq", "Map"):
            size, anchor = open_sizes.pop(), open_anchors.pop()
        if anchor and kind != "AliasEvent":
            anchors[anchor] = size
        open_sizes[-1] += size
        if open_sizes[-1] > nodes:
            raise BadYaml(f"more than {nodes} values, aliases counted as what they stand for", line)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")
