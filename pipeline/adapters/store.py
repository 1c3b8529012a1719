"""Which adapter file belongs to which picture of a set."""

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import Problem, UserError
from pipeline.inputs import read_json
from pipeline.outputs import reading

INDEX = "adapters.json"


def write_index(folder: Path, files: Mapping[str, str]) -> None:
    """Note prepared picture to adapter file, in a set's adapter folder."""
    text = json.dumps(files, indent=2, ensure_ascii=False)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")


def read_index(folder: Path) -> dict[str, str]:
    """Prepared picture to adapter file.

    Raises:
        UserError: when the set has not been trained, or the index is damaged.
    """
    path = folder / INDEX
    if not path.exists():
        found = "the set has no adapters yet"
        raise UserError(Problem(str(path), found, f"Run `dvc repro train@{folder.name}`."))
    with reading(path):
        index = read_json(path)
        names = [*index, *index.values()]
        if not all(isinstance(name, str) and name == Path(name).name and name not in ("", "..") for name in names):
            raise ValueError("it names other things than files")
        return index
