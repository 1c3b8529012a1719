"""What the commands may write over: never the pipeline's own files, and never a person's."""

from collections.abc import Collection
from pathlib import Path

from pipeline.errors import Problem, UserError

OWN_FOLDERS = ("data", "models", "reports")
"""The pipeline's own."""
OF_STAGES = ("data", "reports", "models/adapters", "models/pocket", "models/pocket-canny")
"""Those that its stages write; beside them in `models` lies what a person puts there."""

OF_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")
"""What file managers leave in any folder."""


def own_problems(where: str, out: Path, own: Collection[str] = OWN_FOLDERS) -> list[Problem]:
    """An output among the pipeline's own files, or in the place of the project. where: as the message begins."""
    place, fix = out.resolve(), "Use another place."
    if Path.cwd().resolve().is_relative_to(place):
        return [Problem(where, f"{out} is this project's folder, or one that holds it", fix)]
    inside = [folder for folder in own if place.is_relative_to(Path(folder).resolve())]
    above = [folder for folder in own if Path(folder).resolve().is_relative_to(place)]
    return [
        Problem(where, f"{out} {'lies in' if inside else 'holds'} {folder}, where the pipeline's own files are", fix)
        for folder in (inside or above)[:1]
    ]


def require_not_own(out: Path, own: Collection[str] = OWN_FOLDERS) -> None:
    """Raises UserError with the `own_problems` of a command's --out."""
    if problems := own_problems("--out", out, own):
        raise UserError(*problems)


def require_only(out: Path, names: Collection[str], mark: str, what: str) -> None:
    """Let a folder be replaced that holds what was written there before, and nothing beside it.

    names: of what may lie at its top; mark: the file that must; what: such a folder is, for the message.

    Raises:
        UserError: for anything else that is there.
    """
    fix = "Name a new folder."
    if not (out / mark).is_file():
        raise UserError(Problem(str(out), f"it is there, and no {what}", fix))
    others = sorted({path.name for path in out.iterdir()} - {*names, *OF_SYSTEMS})
    if others:
        raise UserError(Problem(str(out), f"it holds {others[0]}, which would be lost", fix))
