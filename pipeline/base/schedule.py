"""Whether a scheduler_config.json describes a noise schedule, before anything is computed from it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import Problem
from pipeline.inputs import read_json

FILE = "scheduler_config.json"
LONGEST = 100_000  # timesteps; bases are trained with 1000
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "trailing", "linspace")
SAMPLERS = (
    "DDIMScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler",
    "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
"""diffusers' samplers of a variance-preserving schedule, which betas describe. Those of flows and EDM have others."""


def schedule_problems(path: Path) -> list[Problem]:
    """Values of a scheduler_config.json, which is a JSON object, that make no schedule. Missing ones have defaults."""
    config = read_json(path)
    count = timesteps_of(config)
    allowed = {
        "num_train_timesteps": (_is_whole(count, 2, LONGEST), f"a whole number from 2 to {LONGEST}"),
        "beta_start": (_is_beta(config.get("beta_start", 0.0001)), "a number between 0 and 1"),
        "beta_end": (_is_beta(config.get("beta_end", 0.02)), "a number between 0 and 1"),
        "beta_schedule": (config.get("beta_schedule", "linear") in BETAS, f"one of {', '.join(BETAS)}"),
        "trained_betas": (_are_betas(config.get("trained_betas")), f"null, or 2 to {LONGEST} numbers between 0 and 1"),
        "steps_offset": (_is_whole(config.get("steps_offset", 0), 0, LONGEST), "a whole number from 0"),
        "timestep_spacing": (config.get("timestep_spacing", "leading") in SPACINGS, f"one of {', '.join(SPACINGS)}"),
        "set_alpha_to_one": (isinstance(config.get("set_alpha_to_one", True), bool), "true or false"),
        "rescale_betas_zero_snr": (isinstance(config.get("rescale_betas_zero_snr", False), bool), "true or false"),
    }
    if found := _other_path(config):
        fix = "Use a base that was trained on betas, as Stable Diffusion 1, 2 and XL were; flows and EDM are not read."
        return [Problem(str(path), f"{found}: a noise schedule of another kind", fix)]
    kind = config.get("prediction_type") or "epsilon"
    if config.get("rescale_betas_zero_snr") is True and kind != "v_prediction":
        # The picture is what is left when the noise is taken away, divided by how much of it there is: nothing.
        found = f"rescale_betas_zero_snr is true, and prediction_type {kind!r} says nothing of a picture in pure noise"
        return [Problem(str(path), found, "It should be false, or the base one of v_prediction: restore its own file.")]
    return [
        Problem(str(path), f"{key} is {config.get(key)!r}", f"It should be {what}: restore the base's own file.")
        for key, (fits, what) in allowed.items()
        if not fits
    ]


def _other_path(config: Mapping[str, Any]) -> str | None:
    """What says that the base was not trained on betas: read as if it had been, it would show noise."""
    if (sampler := config.get("_class_name", SAMPLERS[0])) not in SAMPLERS:
        return f"_class_name is {sampler!r}"
    if config.get("use_flow_sigmas"):
        return "use_flow_sigmas is true"
    if (times := config.get("timestep_type")) not in ("discrete", None):
        return f"timestep_type is {times!r}"
    return None


def timesteps_of(config: Mapping[str, Any]) -> Any:
    """How many timesteps the schedule has: no solver can take more steps."""
    betas = config.get("trained_betas")
    return len(betas) if isinstance(betas, list) else config.get("num_train_timesteps", 1000)


def _is_whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_beta(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 < value < 1


def _are_betas(value: Any) -> bool:
    return value is None or (isinstance(value, list) and 2 <= len(value) <= LONGEST and all(map(_is_beta, value)))
