"""The base with the adapters of `base.adapters` in its weights: what every stage opens.

They are fused (`combining.fuse`) and not mixed in at each call: under everything they cost nothing, and a training, an
inversion and a sample see the same base.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from pipeline.adapters.combining import fuse
from pipeline.adapters.foreign import is_foreign, read_foreign
from pipeline.adapters.lora import read_adapter, read_notes
from pipeline.adapters.mixing import Adapter, WeightedAdapter
from pipeline.base.digests import file_sha256
from pipeline.base.families import ADAPTER_PREFIX
from pipeline.base.opening import adapters_digest, layers_without_weights, open_base
from pipeline.base.protocol import Adaptable, Base
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.errors import Problem, UserError
from pipeline.sections import BaseAdapter, BaseSection


def open_adapted_base(section: BaseSection, device: torch.device) -> Base:
    """Load the base, frozen and in evaluation mode, with its adapters in its weights. Its digest names them.

    Raises:
        UserError: when the base or an adapter is not there, not whole, not the pinned one, or the two do not fit.
    """
    return open_with_adapters(section, device)[0]


def open_with_adapters(
    section: BaseSection, device: torch.device, *, for_use: bool = True
) -> tuple[Base, list[WeightedAdapter]]:
    """The same, and what is in its weights beside its own. for_use: as in `open_base`."""
    plain = _plain(section)
    base = open_base(plain, device, for_use=for_use)
    if not section.adapters:
        return base, []
    if problems := _pin_problems(section.adapters):
        raise UserError(*problems)
    adapters = [(_read(Path(one.file), plain, base), one.weight) for one in section.adapters]
    try:
        fuse(base, adapters)
    except ValueError as error:
        fix = "Use a smaller weight, or another `base.dtype`."
        raise UserError(Problem("params.yaml: base.adapters", str(error), fix)) from None
    return cast(Base, replace(cast(StableDiffusion, base), digest=adapters_digest(section))), adapters


def find_base_adapter_problems(section: BaseSection) -> list[Problem]:
    """Files of `base.adapters` that are missing, changed, damaged or of another base, without loading that."""
    if not section.adapters or (problems := _pin_problems(section.adapters)):
        return problems if section.adapters else []
    plain = _plain(section)
    layers, problems = layers_without_weights(plain), []
    for one in section.adapters:
        try:
            _read(Path(one.file), plain, layers)
        except UserError as error:
            problems += error.problems
    return problems


def objective_of_file(path: Path) -> str | None:
    """What an adapter of ours was trained for; None for those of other programs."""
    if is_foreign(path):
        return None
    train = read_notes(path).get("train")
    return str(train.get("objective", "denoise")) if isinstance(train, dict) else None


def _plain(section: BaseSection) -> BaseSection:
    return section.model_copy(update={"adapters": ()})


def _pin_problems(adapters: Sequence[BaseAdapter]) -> list[Problem]:
    problems = []
    for number, one in enumerate(adapters):
        where = f"params.yaml: base.adapters.{number}"
        if not Path(one.file).is_file():
            problems.append(Problem(f"{where}.file", f"there is no file {one.file!r}", "Correct the path."))
            continue
        digest = f"sha256:{file_sha256(Path(one.file))}"
        if one.digest != digest:
            found = "it must be pinned" if one.digest is None else f"{one.file} has changed"
            problems.append(Problem(f"{where}.digest", found, f"If the file is right, write `digest: {digest}`."))
    return problems


def _read(path: Path, plain: BaseSection, base: Adaptable) -> Adapter:
    """On the CPU, where it is fused: an Apple GPU has no float64. plain: the base without adapters.

    Raises:
        UserError: when the file is not whole, or of another base, as far as it says.
    """
    if is_foreign(path):
        return read_foreign(path, base, ADAPTER_PREFIX, fused=True)
    return read_adapter(path, adapters_digest(plain), torch.device("cpu"), base)
