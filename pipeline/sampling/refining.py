"""A second base for the last steps: SDXL's refiner (Podell et al. 2023, section 2.5, after eDiff-I's expert denoisers).

One run of the solver goes through both bases on the first one's levels, so that whatever it carries from step to step
goes over with the latents: with the same weights as refiner it is one run, to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.base.conditioning import Conditioning
from pipeline.base.noise_path import Level, NoisePath
from pipeline.base.protocol import Base
from pipeline.sampling.adapted import adapted_conditioning
from pipeline.sampling.guidance import guided, predictor
from pipeline.sampling.solver import Predict, step_at


@dataclass(frozen=True)
class Refinement:
    """What a refiner does with a batch. start: as in `Refiner`. captions: its own conditioning, one row each. negative:
    one row, of what guidance leads away from; None: there is no guidance."""

    base: Base
    start: float
    captions: Conditioning
    negative: Conditioning | None

    def take(self, rows: slice | Sequence[int]) -> "Refinement":
        """For some of the samples, in that order, repeated if named twice."""
        return Refinement(self.base, self.start, self.captions.take(rows), self.negative)

    def taking_over(self, predict: Predict, path: NoisePath, levels: Sequence[Level], guidance: float) -> Predict:
        """`predict`, guidance included, for the steps before the refiner's, and for those the refiner's, under the same
        guidance.

        levels: of all steps taken, from the noise down. Raises ValueError for guidance without a negative caption.
        """
        before, own = steps_before(self.start, path, levels), self._predict(guidance)

        def of_both(latents: torch.Tensor, level: Level) -> torch.Tensor:
            return (predict if step_at(level, levels) < before else own)(latents, level)

        return of_both

    def _predict(self, guidance: float) -> Predict:
        if guidance == 1:
            return predictor(self.base, self.captions)
        if self.negative is None:
            raise ValueError("guidance needs a negative caption, if only the empty one")
        negative = self.negative.repeat(len(self.captions))
        return guided(predictor(self.base, Conditioning.stack([negative, self.captions])), guidance)


@dataclass(frozen=True)
class Refiner:
    """A base for the last steps of another. start: which share of the way from noise lies behind then, above 0 to below
    1 (diffusers' `denoising_end` of the one and `denoising_start` of the other)."""

    base: Base
    start: float

    def refinement(self, captions: Sequence[str], negative: str | None) -> Refinement:
        """For samples with these captions, each encoded once, as those of the first base. negative: None without
        guidance."""
        away = None if negative is None else self.base.condition_negative([negative])
        return Refinement(self.base, self.start, adapted_conditioning(self.base, captions, [()] * len(captions)), away)


def steps_before(start: float, path: NoisePath, levels: Sequence[Level]) -> int:
    """How many of the steps along `levels`, from the noise down, are not a refiner's that starts there.

    None may be left, of steps that begin near the clean end: in an edit of little strength.
    """
    handover = path.handover(start)
    return sum(level.time >= handover for level in levels[:-1])
