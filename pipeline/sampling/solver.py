"""DDIM sampling and inversion (Song et al. 2021) along one schedule. Tensors in, tensors out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from pipeline.base.noise_path import NoiseSchedule

Predict = Callable[[torch.Tensor, int], torch.Tensor]
"""The base's raw prediction for latents (B, C, h, w) at one timestep."""

Progress = Callable[[Iterable[int]], Iterable[int]]


def step_coefficients(schedule: NoiseSchedule, at: int, to: int | None) -> tuple[float, float]:
    """(p, q) of the deterministic DDIM step x_to = p x_at + q prediction (Song et al. 2021, eq. 12, sigma = 0).

    `to` None is the clean end. With a^2 + b^2 = 1 at either end: p = a_to / a_at and q = b_to - p b_at for epsilon;
    for v, where the step is a rotation, p = a_to a_at + b_to b_at and q = b_to a_at - a_to b_at.
    """
    alpha_at, alpha_to = schedule.alpha_cumprod(at), schedule.alpha_cumprod(to)
    a_at, b_at = alpha_at**0.5, (1 - alpha_at) ** 0.5
    a_to, b_to = alpha_to**0.5, (1 - alpha_to) ** 0.5
    if schedule.prediction_type == "epsilon":
        return a_to / a_at, b_to - a_to / a_at * b_at
    return a_to * a_at + b_to * b_at, b_to * a_at - a_to * b_at


def sample(
    noise: torch.Tensor, predict: Predict, schedule: NoiseSchedule, steps: int, progress: Progress = iter
) -> torch.Tensor:
    """Noise (B, C, h, w) at the last timestep to clean latents, in `steps` evaluations."""
    timesteps = schedule.timesteps(steps)
    latents = noise
    for index in progress(range(steps - 1, -1, -1)):
        p, q = step_coefficients(schedule, timesteps[index], timesteps[index - 1] if index else None)
        latents = p * latents + q * predict(latents, timesteps[index])
    return latents


@dataclass(frozen=True)
class FixedPoint:
    """How far `invert` refines each step: at most so many more evaluations, each moved by `relaxation` of the way, and
    none once a step moves by less than `tolerance` (root mean square)."""

    iterations: int
    relaxation: float
    tolerance: float


def invert(
    latents: torch.Tensor,
    predict: Predict,
    schedule: NoiseSchedule,
    steps: int,
    progress: Progress = iter,
    fixed_point: FixedPoint | None = None,
) -> torch.Tensor:
    """Clean latents (B, C, h, w) to the noise from which `sample` comes back to them, as nearly as the steps allow.

    Each step solves `sample`'s own step for its noisy end, with the prediction made there from the latents of the
    clean end, the one thing that is known (Song et al. 2021, section 4.3). For v this is not the forward rotation
    that other inverse schedulers use: a rotation by the angle d shrinks by cos d where the inverse grows by 1 / cos d,
    and over many steps the noise would come out too small. With `fixed_point` the prediction is made anew from the
    noisy end that was found, always towards the same clean end (Pan et al. 2023, "Effective Real Image Editing with
    Accelerated Iterative Diffusion Inversion", section 3.2).
    """
    timesteps = schedule.timesteps(steps)
    for index in progress(range(steps)):
        at, clean_end = timesteps[index], latents
        p, q = step_coefficients(schedule, at, timesteps[index - 1] if index else None)
        latents = (clean_end - q * predict(clean_end, at)) / p
        if fixed_point is None:
            continue
        for _ in range(fixed_point.iterations):
            move = fixed_point.relaxation * ((clean_end - q * predict(latents, at)) / p - latents)
            latents = latents + move
            if float(move.square().mean(dim=(1, 2, 3)).sqrt().max()) < fixed_point.tolerance:
                break
    return latents
