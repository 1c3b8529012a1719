"""Mistakes in the user's input: where, what was found, and how to fix it."""

import errno
import re
import reprlib
import unicodedata
from dataclasses import dataclass

LONGEST = 600  # characters of each part of a problem
MOST = 100  # problems that are printed

# What moves the cursor, begins a line or turns the direction of text: a name could use it to forge what is printed.
_ACTIVE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str, longest: int = LONGEST) -> str:
    """Text from outside as one line that a terminal only shows: control characters as escapes such as `\\x1b`, cut in
    the middle where it is longer than `longest`."""
    if len(text) > longest:
        half = longest // 2
        text = f"{text[:half]} ... [{len(text) - 2 * half} characters] ... {text[-half:]}"
    return "".join(_escaped(letter) if unicodedata.category(letter) in _ACTIVE else letter for letter in text)


def shown(value: object) -> str:
    """What a person recognises of a value from outside, whatever its size."""
    return _Short().repr(value)


def redacted(address: str) -> str:
    """An address without what may be secret: a password, or a token in its place, and all of the query."""
    plain = re.sub(r"(\w://[^\s?#]*)\?[^\s#]*", r"\1?***", address)
    return re.sub(r"(://(?:[^/@:\s]*:)?)[^/@\s]*@", r"\1***@", plain)


@dataclass(frozen=True)
class Problem:
    """One mistake in the user's params, data or base.

    where: the file, `file:line` or params key; found: what is wrong there; fix: the edit or command that fixes it. All
    may hold foreign text: as a string it is one line, without control characters.
    """

    where: str
    found: str
    fix: str

    def __str__(self) -> str:
        return f"{printable(self.where)}: {printable(self.found)}. {printable(self.fix)}"


class UserError(Exception):
    """One or more problems of the user's input. The command line prints them without a traceback and exits 1."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        more = len(problems) - MOST
        lines = [str(problem) for problem in problems[:MOST]]
        super().__init__("\n".join([*lines, *([f"and {more} more"] if more > 0 else [])]))

    def __reduce__(self) -> tuple[type["UserError"], tuple[Problem, ...]]:
        """Whole through a pipe from another process."""
        return type(self), self.problems


# What to do about what the system refuses, by the number of its error; and what is still there.
_FULL = "Make room there. Nothing is half written and what was finished is still there: run the same again."
_READ_ONLY = "Make it writable, or use another place. What is there is as it was."
_FIXES = {
    errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EFBIG: _FULL, errno.EROFS: _READ_ONLY, errno.EACCES: _READ_ONLY,
    errno.EPERM: _READ_ONLY, errno.ENOENT: "Correct the path, or make what is missing.",
    errno.ENAMETOOLONG: "Use a shorter name.",
}  # fmt: skip


def of_system(error: OSError) -> Problem:
    """What the system refused: a full disk, a folder that may not be written to, a name that is too long."""
    where = str(error.filename or error.filename2 or "the system")
    fix = _FIXES.get(error.errno or 0, "Correct it, and run the same again: what was finished is still there.")
    reason = error.strerror or str(error) or type(error).__name__
    if reason.startswith("No usable temporary directory"):  # Python's words where it can write into none of them
        where, fix = "temporary files", "Make room in one of these, or name a folder that has room in TMPDIR."
    return Problem(where, redacted(reason), fix)


def _escaped(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


class _Short(reprlib.Repr):
    """What a person recognises of a value, whatever its size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple = 3, 12, 12, 12
        self.maxstring = self.maxlong = self.maxother = 120

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write out thousands of digits."""
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"a number of {x.bit_length()} bits"
