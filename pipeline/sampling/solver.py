"""Along a noising path: from noise to pictures, and back. Tensors in, tensors out."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal

import torch

from pipeline.base.noise_path import Level, NoisePath, Pair
from pipeline.base.posterior import keyed_seed

Solver = Literal["midpoint", "ddim"]

Predict = Callable[[torch.Tensor, Level], torch.Tensor]
"""The base's raw prediction for latents (B, C, h, w) at one level."""

Progress = Callable[[Iterable[int]], Iterable[int]]
"""A progress bar around the numbers of the steps."""

After = Callable[[torch.Tensor, Level], torch.Tensor]
"""What becomes of latents (B, C, h, w) once a step has brought them to a level."""


def untouched(latents: torch.Tensor, level: Level) -> torch.Tensor:
    """Nothing becomes of them."""
    return latents


def falling_levels(path: NoisePath, steps: int, taken: int | None = None) -> tuple[Level, ...]:
    """The levels that `sample` goes through, from the noise to the clean end. taken: as there."""
    return path.levels(steps)[: None if taken is None else taken + 1][::-1]


def step_at(level: Level, levels: Sequence[Level]) -> int:
    """The number of the step along `levels`, from the noise down, that asks at a level: where it begins, or midway.

    By the noise: at the clean end two levels may have one time.
    """
    return min(sum(noisier.s >= level.s for noisier in levels), len(levels) - 1) - 1


def sample(
    noise: torch.Tensor,
    predict: Predict,
    path: NoisePath,
    steps: int,
    progress: Progress = iter,
    solver: Solver = "midpoint",
    restarts: Collection[int] = (),
    taken: int | None = None,
    after: After = untouched,
    fresh: float = 0.0,
    seeds: Sequence[int] = (),
) -> torch.Tensor:
    """Noise (B, C, h, w) at the last level to clean latents.

    midpoint: `steps` + 1 evaluations. ddim: `steps`. restarts: steps before which `predict` changes, so that the
    midpoint of the step before them says nothing about them. taken: so many of the steps only, the last ones, from
    latents with as much noise as is left there; None: all. after: changes the latents after each step.

    fresh: of ddim, the share of the noise, by variance, that is drawn anew after each step but the last: 0, none; 1, as
    much as ancestral sampling draws (DDPM, Ho et al. 2020). It is the square of the eta of Song et al. (2021, eq. 16).
    Errors of earlier steps go with the old noise. seeds: one for each sample, of its fresh noise.

    Raises:
        ValueError: for fresh noise with midpoint, which goes on with what the step before says.
    """
    levels = falling_levels(path, steps, taken)
    if solver == "midpoint":
        if fresh:
            raise ValueError("fresh noise needs ddim")
        return _midpoint(noise, predict, path, levels, progress, restarts, after)
    x = noise
    for number in progress(range(len(levels) - 1)):
        at, to = levels[number], levels[number + 1]
        pair = path.split(x, predict(x, at), at)
        if fresh and number < len(levels) - 2:
            noise = fresh_noise(x, seeds, number)
            x = ancestral_step(pair, at, to, fresh, noise)
        else:
            x = step(x, pair, at, to)
        x = after(x, to)
    return x


def fresh_noise(like: torch.Tensor, seeds: Sequence[int], step: int) -> torch.Tensor:
    """Noise for latents (B, C, h, w) after a step, each from its own seed: the same in whatever batch."""
    drawn = [
        torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(keyed_seed("fresh noise", seed, step)))
        for seed in seeds
    ]
    return torch.stack(drawn).to(like)


def invert(
    latents: torch.Tensor,
    predict: Predict,
    path: NoisePath,
    steps: int,
    progress: Progress = iter,
    solver: Solver = "midpoint",
    taken: int | None = None,
    after: After = untouched,
) -> torch.Tensor:
    """Clean latents (B, C, h, w) to the noise from which `sample` comes back to them, as nearly as the steps allow.

    taken: so many steps only, the first ones; `sample` with the same comes back from there. after: as in `sample`.

    midpoint: the very scheme of `sample`, run the other way. ddim: each step solves `sample`'s own step for its noisy
    end, with the prediction made there from the latents of the clean end, the one thing that is known (Song et al.
    2021, section 4.3). For v this is not the forward rotation that other inverse schedulers use: a rotation by the
    angle d shrinks by cos d where the inverse grows by 1 / cos d, and over many steps the noise would come out too
    small.
    """
    levels = path.levels(steps)[: None if taken is None else taken + 1]
    if solver == "midpoint":
        return _midpoint(latents, predict, path, levels, progress, after=after)
    x = latents
    for number in progress(range(len(levels) - 1)):
        at, to = levels[number], levels[number + 1]
        x = after(step(x, path.split(x, predict(x, to), to, x_at=at), at, to), to)
    return x


def step(x: torch.Tensor, pair: Pair, at: Level, to: Level) -> torch.Tensor:
    """x (B, C, h, w) moved from one level to another, towards or away from the noise.

    x + (A - a) x0 + (S - s) e. With the pair predicted for x itself this is DDIM (Song et al. 2021, eq. 12, sigma = 0),
    and Euler's step for a flow; with the pair predicted at the midpoint it is of second order.
    """
    return x + (to.a - at.a) * pair.clean + (to.s - at.s) * pair.noise


def ancestral_step(pair: Pair, at: Level, to: Level, fresh: float, noise: torch.Tensor) -> torch.Tensor:
    """What the pair (B, C, h, w) predicted at one level gives at a less noisy one, with some of its noise replaced.

    fresh: the share, 0 to 1, of what the posterior q(x_to | x_at, x0) draws; its variance is S^2 (1 - (a S / A s)^2),
    with a and s at the one level and A and S at the other (Song et al. 2021, eq. 16, for any path).
    """
    variance = fresh * to.s**2 * (1 - (at.a * to.s / (to.a * at.s)) ** 2)
    return to.a * pair.clean + (to.s**2 - variance) ** 0.5 * pair.noise + variance**0.5 * noise


def _midpoint(
    x: torch.Tensor,
    predict: Predict,
    path: NoisePath,
    levels: Sequence[Level],
    progress: Progress,
    restarts: Collection[int] = (),
    after: After = untouched,
) -> torch.Tensor:
    """From the first level to the last by the midpoint rule, at one evaluation a step and one more at the start.

    FireFlow (Deng et al., ICML 2025, "Fast Inversion of Rectified Flow for Image Semantic Editing", algorithm 1),
    written for any prediction: the way to a step's midpoint takes the pair of the midpoint before, which is near enough
    for second order where the field is smooth. It is the same in both directions, so that one undoes the other.
    """
    pair: Pair | None = None
    for number in progress(range(len(levels) - 1)):
        at, to = levels[number], levels[number + 1]
        if pair is None or number in restarts:
            pair = path.split(x, predict(x, at), at)
        middle = path.midpoint(at, to)
        halfway = step(x, pair, at, middle)
        pair = path.split(halfway, predict(halfway, middle), middle)
        x = after(step(x, pair, at, to), to)
    return x
