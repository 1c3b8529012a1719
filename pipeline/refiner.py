"""SDXL's refiner: whether it fits the base whose steps it ends, and opening it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.base.checking import base_family, config_folder, find_base_problems, is_single_file
from pipeline.base.families import STABLE_DIFFUSION_XL
from pipeline.base.noise_path import VariancePreserving
from pipeline.base.opening import fit_problems, open_base
from pipeline.base.schedule import FILE
from pipeline.errors import Problem, UserError
from pipeline.inputs import read_json
from pipeline.sampling.refining import Refiner, steps_before
from pipeline.sampling.solver import falling_levels
from pipeline.sections import BaseSection, RefinerSection

PLACE = "params.yaml: refiner"


@dataclass(frozen=True)
class Asked:
    """Steps that params ask for. taken: so many of them, the last ones; None: all. needs_base: with
    adapters or a ControlNet, which act in the base's steps alone."""

    steps: int
    taken: int | None = None
    needs_base: bool = True


def find_refiner_problems(
    section: RefinerSection, base: BaseSection, asked: Mapping[str, Asked] | None = None, download: bool = False
) -> list[Problem]:
    """Everything that would keep this refiner from ending the steps of this base, which is in order itself.

    asked: steps by their place in params.yaml. download: a refiner of the Hub, to look at its weights, too.
    """
    own = section.as_base(base)
    if own is None:
        unpinned = section.revision is None
        return [] if unpinned else [Problem(f"{PLACE}.revision", "there is no refiner.source to pin", "Write null.")]
    if (family := base_family(base)) is not STABLE_DIFFUSION_XL:
        found = f"the base is a {family.name}, and only {STABLE_DIFFUSION_XL.name} has a refiner"
        return [Problem(f"{PLACE}.source", found, "Write null, or name such a base in base.source.")]
    if is_single_file(own):
        fix = "Name a diffusers folder or a Hub id."
        return [Problem(f"{PLACE}.source", "a single .safetensors file contains no configs", fix)]
    problems = find_base_problems(own) or fit_problems(own, download) or _latent_problems(own, base)
    return problems or _step_problems(section.start, _path(base), asked or {})


def open_refiner(section: RefinerSection, base: BaseSection, device: torch.device) -> Refiner | None:
    """Load it, frozen and in evaluation mode; None where there is none.

    Raises:
        UserError: when it is not there, not whole, not the pinned one, or does not fit the base.
    """
    if problems := find_refiner_problems(section, base, download=True):
        raise UserError(*problems)
    own = section.as_base(base)
    return None if own is None else Refiner(open_base(own, device), section.start)


def _latent_problems(own: BaseSection, base: BaseSection) -> list[Problem]:
    """A refiner that would take the base's latents for something else."""
    theirs, ours = _latents(own), _latents(base)
    other = [f"{key} is {theirs[key]}, the base's {ours[key]}" for key in ours if theirs[key] != ours[key]]
    if not torch.equal(_path(own).alphas_cumprod, _path(base).alphas_cumprod):
        other.append("its noise schedule is not the base's")
    if not other:
        return []
    found = f"it does not read this base's latents: {'; '.join(other)}"
    return [Problem(f"{PLACE}.source", found, "Use a refiner made for this base.")]


def _latents(section: BaseSection) -> dict[str, Any]:
    """What latents and predictions mean, with diffusers' own values for keys that the configs lack."""
    config = read_json(config_folder(section, "vae") / "vae/config.json")
    return {
        "latent_channels": config.get("latent_channels", 4),
        "scaling_factor": config.get("scaling_factor", 0.18215),
        "pixels along a latent": 2 ** (len(config.get("block_out_channels", [64])) - 1),
        "prediction_type": _path(section).prediction_type,
    }


def _path(section: BaseSection) -> VariancePreserving:
    return VariancePreserving.from_scheduler_config(read_json(config_folder(section, "scheduler") / "scheduler" / FILE))


def _step_problems(start: float, path: VariancePreserving, asked: Mapping[str, Asked]) -> list[Problem]:
    """Steps of which none is the refiner's, or all are, so that adapters or edges would do nothing."""
    problems = []
    for where, each in asked.items():
        if each.steps > len(path):
            continue  # more than there are, which is reported elsewhere
        levels = falling_levels(path, each.steps, each.taken)
        taken, before = len(levels) - 1, steps_before(start, path, levels)
        if taken and before == taken:
            found, fix = f"none of {each.steps} steps is left for the refiner", "Write less, or more steps."
        elif taken and each.needs_base and not before:
            found = f"all steps taken of {each.steps} are the refiner's, and adapters and edges have no part in them"
            fix = "Write more, or take more steps."
        else:
            continue
        problems.append(Problem(f"{PLACE}.from", f"{start:g}: {found} ({where})", fix))
    return problems
