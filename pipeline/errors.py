"""Mistakes in the user's input: where, what was found, and how to fix it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake in the user's params, data or base.

    where: the file, `file:line` or params key; found: what is wrong there; fix: the edit or command that fixes it.
    """

    where: str
    found: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.found}. {self.fix}"


class UserError(Exception):
    """One or more problems of the user's input. The command line prints them without a traceback and exits 1."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))
