"""Noise paths for tests: those of diffusers' schedulers, and a flow, which the package does not have yet."""

from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler

from pipeline.base.noise_path import Level, NoisePath, VariancePreserving

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Flow(NoisePath):
    """x = (1 - t) x0 + t e, and the network predicts e - x0 (rectified flow, Liu et al. 2022). Times from 0 to 1."""

    def levels(self, steps: int) -> tuple[Level, ...]:
        return tuple(self.level(number / steps) for number in range(steps + 1))

    def at(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 1 - times.double(), times.double()

    def times_at(self, draws: torch.Tensor) -> torch.Tensor:
        return draws

    def time_at(self, share: float) -> float:
        return share

    def even_times(self, count: int) -> torch.Tensor:
        return torch.arange(1, count + 1) / count

    def handover(self, done: float) -> float:
        return 1 - done

    def target_coefficients(self, a: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return -torch.ones_like(a), torch.ones_like(s)


def diffusion_path(prediction_type: str, **changes: object) -> VariancePreserving:
    return VariancePreserving.from_scheduler_config({**CONFIG, "prediction_type": prediction_type, **changes})


def scheduler_like(path: VariancePreserving) -> DDIMScheduler:
    return DDIMScheduler(**CONFIG, prediction_type=path.prediction_type)


PATHS: dict[str, NoisePath] = {
    "epsilon": diffusion_path("epsilon"), "v_prediction": diffusion_path("v_prediction"), "flow": Flow(),
}  # fmt: skip
