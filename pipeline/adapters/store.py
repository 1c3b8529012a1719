"""Which adapter file belongs to which picture of a set."""

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import Problem, UserError
from pipeline.inputs import read_json
from pipeline.outputs import reading

INDEX = "adapters.json"
ADAPTERS, LORAS = Path("models/adapters"), Path("models/loras")
"""Of sets, and files that were brought along."""


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


def find_adapter(name: str) -> Path:
    """The file of an adapter: `woodcut` (of a set that has one), `alps/dawn` (of a set and picture), or
    `ink.safetensors`, which lies in LORAS.

    Raises:
        UserError: when it is not there, or the name fits several.
    """
    if is_file_name(name):
        if not (LORAS / name).is_file():
            raise UserError(Problem(str(LORAS / name), "the file is missing", "Put it there, or correct its name."))
        return LORAS / name
    key, slash, picture = name.partition("/")
    files = read_index(ADAPTERS / key)
    if slash:
        fitting = {file for named, file in files.items() if picture in (named, Path(named).stem, Path(file).stem)}
    else:
        fitting = set(files.values())
    if len(fitting) == 1:
        return ADAPTERS / key / fitting.pop()
    found = f"no one adapter {picture!r}" if slash else f"the set {key} has {len(fitting)} adapters"
    choices = ", ".join(sorted(f"{key}/{Path(file).stem}" for file in set(files.values())))
    raise UserError(Problem(name, found, f"Choose one of {choices}."))


def is_file_name(name: str) -> bool:
    """Whether an adapter's name is that of a file, and not of a set."""
    return name.endswith(".safetensors")
