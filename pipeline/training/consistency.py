"""To sample in a few steps: each noisy picture leads to the same clean one as the solver's next point on its way does
(Song et al. 2023, "Consistency Models"; Luo et al. 2023, "LCM-LoRA", algorithm 1 with a LoRA for the student)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from pipeline.base.conditioning import Conditioning
from pipeline.base.noise_path import NoisePath, Pair
from pipeline.base.protocol import Base
from pipeline.sampling.consistency import GRID, boundary
from pipeline.training.draws import Batch, drawn_by_each
from pipeline.training.objective import Losses, Objective, Trained

HUBER = 0.001
"""Below this a difference counts by its square, above by its size."""


@dataclass(frozen=True)
class Consistency(Objective):
    """guidance: its range; what is distilled is the base under a guidance drawn from it (1: none; the paper's w is one
    less). skip: how many points of the grid lie between a noisy picture and the one that the teacher makes of it."""

    # The base, whose x0 is a mean of all that could be there, agrees with itself well before it learns to jump.
    errors_fall: ClassVar[bool] = False
    guidance: tuple[float, float]
    skip: int = 1

    def __call__(self, trained: Trained, batch: Batch, means: torch.Tensor | None = None) -> Losses:
        """Losses, and nothing observed. The teacher is the base without the adapters in training."""
        return Losses(self.errors(trained, batch))

    def errors(self, trained: Trained, batch: Batch) -> torch.Tensor:
        """The same at fixed noise."""
        base, path = trained.base, trained.base.path
        times, before = grid_times(path, batch.times, self.skip)
        noisy = path.add_noise(batch.clean, batch.noise, times)
        low, high = self.guidance
        guidance = drawn_by_each(
            batch, lambda generator: low + (high - low) * torch.rand((), generator=generator), "guidance"
        )
        with torch.no_grad():
            with trained.without_adapters():
                pair = guided_pair(base, noisy, times, batch.conditioning, trained.empty_caption, guidance)
            nearer = path.add_noise(pair.clean, pair.noise, before)
            target = consistent(base, nearer, before, batch.conditioning)
        difference = consistent(base, noisy, times, batch.conditioning) - target
        return ((difference.square() + HUBER**2).sqrt() - HUBER).mean(dim=(1, 2, 3))


def grid_times(path: NoisePath, times: torch.Tensor, skip: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """The point of the solver's grid at or above each time, and the one `skip` before it, (B,); before the first lies
    0."""
    grid = path.even_times(GRID)
    places = torch.searchsorted(grid, times.to(grid)).clamp(max=GRID - 1)
    return grid[places], torch.cat([grid.new_zeros(1), grid])[(places + 1 - skip).clamp(min=0)]


def guided_pair(
    base: Base,
    noisy: torch.Tensor,
    times: torch.Tensor,
    conditioning: Conditioning,
    empty: Conditioning,
    guidance: torch.Tensor,
) -> Pair:
    """The clean latents and the noise that the base sees in noisy ones (B, C, h, w), each under its guidance (B,)."""
    with_caption = base.path.split_each(noisy, base.predict(noisy, times, conditioning), times)
    nothing = empty.repeat(len(noisy))
    without = base.path.split_each(noisy, base.predict(noisy, times, conditioning.beside(nothing.tensors)), times)
    factors = guidance.view(-1, 1, 1, 1)
    return Pair(*(there + factors * (one - there) for one, there in zip(with_caption, without, strict=True)))


def consistent(base: Base, x: torch.Tensor, times: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    """f(x, t) = c_skip x + c_out x0(x, t) of latents (B, C, h, w) at times (B,)."""
    clean = base.path.split_each(x, base.predict(x, times, conditioning), times).clean
    skip, out = (factor.view(-1, 1, 1, 1).to(x) for factor in boundary(times))
    return skip * x + out * clean
