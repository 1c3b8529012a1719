"""Pictures from captions and noise alone."""

from collections.abc import Sequence

import torch

from pipeline.adapters.mixing import WeightedAdapter, mixed_adapters, mixing_weights
from pipeline.base.conditioning import Conditioning
from pipeline.base.protocol import Base
from pipeline.sampling.adapted import adapted_conditioning
from pipeline.sampling.consistency import Sampler, consistency_levels, sample_consistently
from pipeline.sampling.guidance import guided, predictor
from pipeline.sampling.refining import Refinement
from pipeline.sampling.solver import Progress, falling_levels, sample


@torch.no_grad()
def sample_captions(
    base: Base,
    noise: torch.Tensor,
    conditioning: Conditioning,
    adapters: Sequence[Sequence[WeightedAdapter]] = (),
    *,
    steps: int,
    guidance: float = 1.0,
    solver: Sampler = "midpoint",
    progress: Progress = iter,
    refinement: Refinement | None = None,
    seeds: Sequence[int] = (),
    fresh: float = 0.0,
) -> torch.Tensor:
    """Clean latents (B, C, h, w) from noise (B, C, h, w) and B captions.

    adapters: those of each sample; () for none anywhere. conditioning: the captions as they read them
    (`adapted_conditioning`). At guidance 1 the empty caption is not evaluated at all. refinement: of the last steps,
    without the adapters; None: all are the base's. seeds, fresh: of the noise between steps, as
    in `sample_consistently`, which goes with no refinement, and in `sample`.
    """
    adapters = adapters or [()] * len(noise)
    loaded, weights = mixing_weights(adapters)
    if guidance == 1:
        predict = predictor(base, conditioning)
    else:
        empty = adapted_conditioning(base, [""] * len(noise), adapters)
        predict = guided(predictor(base, Conditioning.stack([empty, conditioning])), guidance)
        # Both halves of the doubled batch see the same adapters.
        weights = torch.cat([weights, weights], dim=1)
    if solver == "consistency":
        levels = consistency_levels(base.path, steps)
        with mixed_adapters(base.denoiser, loaded, weights):
            return sample_consistently(noise, predict, base.path, levels, seeds, progress, fresh=fresh)
    if refinement is not None:
        predict = refinement.taking_over(predict, base.path, falling_levels(base.path, steps), guidance)
    with mixed_adapters(base.denoiser, loaded, weights):
        return sample(noise, predict, base.path, steps, progress, solver, fresh=fresh, seeds=seeds)
