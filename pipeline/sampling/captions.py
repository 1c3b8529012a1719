"""Pictures from captions and noise alone."""

from collections.abc import Sequence

import torch

from pipeline.adapters.conditioning import adapted_conditioning
from pipeline.adapters.mixing import WeightedAdapter, mixed_adapters, mixing_weights
from pipeline.base.conditioning import Conditioning
from pipeline.base.noise_path import Level
from pipeline.base.protocol import Base
from pipeline.sampling.guidance import guided
from pipeline.sampling.solver import Predict, Progress, Solver, sample


def predictor(base: Base, conditioning: Conditioning) -> Predict:
    """The base's prediction for a batch that always has these captions."""

    def predict(latents: torch.Tensor, level: Level) -> torch.Tensor:
        return base.predict(latents, torch.full((len(latents),), level.time), conditioning)

    return predict


@torch.no_grad()
def sample_captions(
    base: Base,
    noise: torch.Tensor,
    conditioning: Conditioning,
    adapters: Sequence[Sequence[WeightedAdapter]] = (),
    *,
    steps: int,
    guidance: float = 1.0,
    solver: Solver = "midpoint",
    progress: Progress = iter,
) -> torch.Tensor:
    """Clean latents (B, C, h, w) from noise (B, C, h, w) and B captions.

    adapters: those of each sample; () for none anywhere. conditioning: the captions as they read them
    (`adapted_conditioning`). At guidance 1 the empty caption is not evaluated at all.
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
    with mixed_adapters(base.denoiser, loaded, weights):
        return sample(noise, predict, base.path, steps, progress, solver)
