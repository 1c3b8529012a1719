"""Classifier-free guidance (Ho and Salimans 2022) over any prediction. Tensors in, tensors out."""

import torch

from pipeline.base.noise_path import Level
from pipeline.sampling.solver import Predict


def guided(predict: Predict, guidance: float, rescale: float = 0.0) -> Predict:
    """Guidance g over a `predict` that takes twice the batch, first the rows of the empty or negative caption:
    prediction = empty + g (caption - empty)."""

    def both(latents: torch.Tensor, level: Level) -> torch.Tensor:
        without, given = predict(torch.cat([latents, latents]), level).chunk(2)
        return rescaled(without + guidance * (given - without), given, rescale)

    return both


def rescaled(guided: torch.Tensor, given: torch.Tensor, share: float) -> torch.Tensor:
    """Bring guided predictions (B, C, h, w) back to the spread of the unguided ones, by `share` of the way.

    Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", eqs. 15 and 16: guidance inflates
    predictions, and pictures come out overexposed.
    """
    if share == 0:
        return guided
    factors = given.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(guided, guided * factors, share)
