"""Which adapter file belongs to which picture of a set."""

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import Problem, UserError

INDEX = "adapters.json"


def write_index(folder: Path, files: Mapping[str, str]) -> None:
    """Note prepared picture to adapter file, in a set's adapter folder."""
    text = json.dumps(files, indent=2, ensure_ascii=False)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")


def read_index(folder: Path) -> dict[str, str]:
    """Prepared picture to adapter file.

    Raises:
        UserError: when the set has not been trained.
    """
    path = folder / INDEX
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = "the set has no adapters yet"
        raise UserError(Problem(str(path), found, f"Run `dvc repro train@{folder.name}`.")) from None
