"""Adapters as a person names them on the command line: `woodcut`, `alps/dawn:0.5`, `path/to/file.safetensors:-0.3`."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.adapters.foreign import is_foreign, read_foreign
from pipeline.adapters.lora import read_adapter, read_notes
from pipeline.adapters.mixing import WeightedAdapter
from pipeline.adapters.store import ADAPTERS, find_adapter, is_file_name
from pipeline.base.families import ADAPTER_PREFIX
from pipeline.base.protocol import Adaptable
from pipeline.errors import Problem, UserError
from pipeline.params import KEY, load_params
from pipeline.sections import BaseSection


@dataclass(frozen=True)
class Chosen:
    """An adapter file and its weight. base: `source` and `digest` that its training noted; None: another program's."""

    path: Path
    weight: float
    base: Mapping[str, str] | None


def choose(names: list[str]) -> list[Chosen]:
    """The named adapters; all must belong to one base, as far as they say.

    Raises:
        UserError: for a name that fits no adapter or several, a weight that is no number, adapters of different bases.
    """
    chosen = [_choose(name) for name in names]
    of_ours = [(one.path, one.base) for one in chosen if one.base]
    problems = [
        Problem(
            str(path),
            f"trained on {base['source']}, and {of_ours[0][0]} on {of_ours[0][1]['source']}",
            "Only adapters of one and the same base have a sum.",
        )
        for path, base in of_ours
        if base["digest"] != of_ours[0][1]["digest"]
    ]
    if problems:
        raise UserError(*problems)
    return chosen


def require_base(chosen: list[Chosen], section: BaseSection, digest: str) -> None:
    """Refuse adapters of another base than params.yaml names. digest: its `adapters_digest`.

    Raises:
        UserError: when there are any.
    """
    for one in chosen:
        if one.base and one.base["digest"] != digest:
            found = (
                f"trained on {one.base['source']}, and `base` in params.yaml is {section.source}, or has changed since"
            )
            raise UserError(Problem(str(one.path), found, "Name adapters of that base, or set `base` to theirs."))


def read_chosen(chosen: list[Chosen], base: Adaptable | None, fused: bool = False) -> list[WeightedAdapter]:
    """The adapters with their weights. base: the one whose layers they must fit; None: not looked at, where all are
    ours. fused: as in `read_foreign`."""
    weighted = []
    for one in chosen:
        if one.base:
            adapter = read_adapter(one.path, one.base["digest"], torch.device("cpu"), base)
        else:
            assert base is not None
            adapter = read_foreign(one.path, base, ADAPTER_PREFIX, fused)
        weighted.append((adapter, one.weight))
    return weighted


def _choose(name: str) -> Chosen:
    path, weight = weighted(name)
    file = Path(path)
    if not is_file_name(path):
        require_set(path.partition("/")[0])
        file = find_adapter(path)
    elif not file.is_file():
        raise UserError(Problem(path, "there is no such file", "Correct the path."))
    foreign = file.is_file() and is_foreign(file)
    return Chosen(file, weight, None if foreign else read_notes(file)["base"])


def require_set(key: str) -> None:
    """Refuse a set that has no adapters and is none of params.yaml, whose training nobody could be told to run.

    Raises:
        UserError: with the sets that there are.
    """
    if not re.fullmatch(KEY, key) or not (ADAPTERS / key).exists():
        load_params().get_set(key)


def weighted(name: str) -> tuple[str, float]:
    """An adapter's name and its weight, 1 where none is given.

    Raises:
        UserError: for a weight that is no number.
    """
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
