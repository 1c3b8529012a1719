"""Sampling in a few steps, by a base distilled to jump from any noise to the picture (Song et al. 2023, "Consistency
Models"; Luo et al. 2023, "LCM-LoRA").

Each step jumps to the clean end and adds noise for the next: fresh noise, as these papers do, or that which the jump
itself leaves, as DDIM does (Zheng et al. 2024, "Trajectory Consistency Distillation", go between the two as well).
From a clean end nothing leads back to where a jump began: samples and edits can have it, morphs cannot.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from pipeline.base.noise_path import Level, NoisePath
from pipeline.sampling.solver import After, Predict, Progress, fresh_noise, untouched

Sampler = Literal["midpoint", "ddim", "consistency"]
"""The solvers, and this."""
GRID = 50
"""Parts of the path, at whose ends alone the base is distilled."""
MOST_STEPS = 8
"""Beyond these its own solver is better."""
_SPREAD, _SCALE = 0.5, 10.0  # standard deviation of the data, and how times are scaled, as LCM has them


def boundary(times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """c_skip and c_out, (B,) float64, of f(x, t) = c_skip x + c_out x0(x, t), which is x itself at time 0."""
    scaled = _SCALE * times.double()
    total = scaled.square() + _SPREAD**2
    return _SPREAD**2 / total, scaled / total.sqrt()


def consistency_levels(path: NoisePath, steps: int, strength: float = 1.0) -> tuple[Level, ...]:
    """The levels that `steps` jumps start from, the noisiest first, and the clean end.

    They lie evenly on the grid up to the share `strength` of it, as diffusers' LCMScheduler has them. Raises ValueError
    for more steps than that part of the grid has.
    """
    times = path.even_times(GRID)[: int(GRID * strength)].tolist()
    if not 1 <= steps <= len(times):
        raise ValueError(f"{steps} steps asked of {len(times)}")
    falling = times[::-1]
    starts = [falling[len(times) * number // steps] for number in range(steps)]
    return (*(path.level(time) for time in starts), path.levels(1)[0])


def sample_consistently(
    noise: torch.Tensor,
    predict: Predict,
    path: NoisePath,
    levels: Sequence[Level],
    seeds: Sequence[int],
    progress: Progress = iter,
    after: After = untouched,
    fresh: float = 0.0,
) -> torch.Tensor:
    """Latents (B, C, h, w) at the first of `consistency_levels` to clean latents, at one evaluation a step.

    seeds: one for each sample, of its fresh noise. after: as in `sample`. fresh: the share of the noise after a step,
    by variance, that is drawn anew, 0 to 1; the rest is what the clean latents leave of the noisy ones.
    """
    x = noise
    for number in progress(range(len(levels) - 1)):
        at, to = levels[number], levels[number + 1]
        clean = path.split(x, predict(x, at), at).clean
        skip, out = (float(part) for part in boundary(torch.tensor([at.time])))
        clean = skip * x + out * clean
        if number < len(levels) - 2:
            noise = (x - at.a * clean) / at.s
            if fresh:
                noise = (1 - fresh) ** 0.5 * noise + fresh**0.5 * fresh_noise(clean, seeds, number)
            x = after(to.a * clean + to.s * noise, to)
        else:
            x = after(clean, to)
    return x
