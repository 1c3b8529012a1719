"""Along a noising path: from noise to pictures, and back. Tensors in, tensors out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from pipeline.base.noise_path import Level, NoisePath, Pair

Predict = Callable[[torch.Tensor, Level], torch.Tensor]
"""The base's raw prediction for latents (B, C, h, w) at one level."""

Progress = Callable[[Iterable[int]], Iterable[int]]
"""A progress bar around the numbers of the steps."""


def step(x: torch.Tensor, pair: Pair, at: Level, to: Level) -> torch.Tensor:
    """x (B, C, h, w) moved from one level to another, towards or away from the noise.

    x + (A - a) x0 + (S - s) e. With the pair predicted for x itself this is DDIM (Song et al. 2021, eq. 12, sigma = 0),
    and Euler's step for a flow.
    """
    return x + (to.a - at.a) * pair.clean + (to.s - at.s) * pair.noise


def sample(
    noise: torch.Tensor, predict: Predict, path: NoisePath, steps: int, progress: Progress = iter
) -> torch.Tensor:
    """Noise (B, C, h, w) at the last level to clean latents, in `steps` evaluations."""
    levels = path.levels(steps)
    x = noise
    for number in progress(range(steps, 0, -1)):
        at, to = levels[number], levels[number - 1]
        x = step(x, path.split(x, predict(x, at), at), at, to)
    return x


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
    path: NoisePath,
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
    levels = path.levels(steps)
    x = latents
    for number in progress(range(1, steps + 1)):
        clean_end, at, to = x, levels[number - 1], levels[number]

        def solved(noisy: torch.Tensor, x: torch.Tensor = clean_end, at: Level = at, to: Level = to) -> torch.Tensor:
            return step(x, path.split(x, predict(noisy, to), to, x_at=at), at, to)

        x = solved(clean_end)
        if fixed_point is None:
            continue
        for _ in range(fixed_point.iterations):
            move = fixed_point.relaxation * (solved(x) - x)
            x = x + move
            if float(move.square().mean(dim=(1, 2, 3)).sqrt().max()) < fixed_point.tolerance:
                break
    return x
