"""Adapters as a person names them on the command line: `woodcut`, `alps/dawn:0.5`, `path/to/file.safetensors:-0.3`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.adapters.lora import read_adapter, read_notes
from pipeline.adapters.mixing import Adapter
from pipeline.adapters.store import read_index
from pipeline.errors import Problem, UserError

ADAPTERS = Path("models/adapters")


@dataclass(frozen=True)
class Chosen:
    """An adapter file and its weight. notes: what its training noted in it."""

    path: Path
    weight: float
    notes: dict[str, Any]

    @property
    def base_digest(self) -> str:
        """Of the base that it was trained on."""
        return str(self.notes["base"]["digest"])

    def read(self, denoiser: nn.Module | None = None) -> tuple[Adapter, float]:
        """The adapter and its weight. denoiser: the base's, whose layers it must fit; None: not looked at."""
        return read_adapter(self.path, self.base_digest, torch.device("cpu"), denoiser), self.weight


def choose(names: list[str]) -> list[Chosen]:
    """The named adapters; all must belong to one base.

    Raises:
        UserError: for a name that fits no adapter or several, a weight that is no number, adapters of different bases.
    """
    chosen = [_choose(name) for name in names]
    first = chosen[0]
    problems = [
        Problem(
            str(other.path),
            f"trained on {other.notes['base']['source']}, and {first.path} on {first.notes['base']['source']}",
            "Only adapters of one and the same base have a sum.",
        )
        for other in chosen[1:]
        if other.base_digest != first.base_digest
    ]
    if problems:
        raise UserError(*problems)
    return chosen


def _choose(name: str) -> Chosen:
    path, weight = _weighted(name)
    if not path.endswith(".safetensors"):
        file = _of_set(*path.split("/", 1)) if "/" in path else _of_set(path, None)
    else:
        file = Path(path)
    return Chosen(file, weight, read_notes(file))


def _weighted(name: str) -> tuple[str, float]:
    path, colon, text = name.rpartition(":")
    if not colon:
        return name, 1.0
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise UserError(Problem(name, f"the weight {text!r} is no number", "Write it as `woodcut:0.8`."))
    return path, weight


def _of_set(key: str, picture: str | None) -> Path:
    folder = ADAPTERS / key
    files = read_index(folder)
    if picture is None:
        fitting = set(files.values())
    else:
        fitting = {file for name, file in files.items() if picture in (name, Path(name).stem, Path(file).stem)}
    if len(fitting) == 1:
        return folder / fitting.pop()
    choices = ", ".join(sorted(f"{key}/{Path(file).stem}" for file in set(files.values())))
    found = (
        f"the set {key} has {len(set(files.values()))} adapters" if picture is None else f"no one adapter {picture!r}"
    )
    raise UserError(Problem(f"{key}/{picture}" if picture else key, found, f"Choose one of {choices}."))
