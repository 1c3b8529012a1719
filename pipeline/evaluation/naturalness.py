"""How natural a frame looks to the base itself: nothing has to be downloaded."""

import torch

from pipeline.base.conditioning import Conditioning
from pipeline.base.protocol import Base

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4)
"""Timesteps, in shares of the schedule: low enough that a double exposure is still visible through the noise."""


@torch.no_grad()
def mean_errors(base: Base, latents: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    """Mean squared error (N,) of the base's noise or v for clean latents (N, C, h, w) and N captions.

    At fixed timesteps and noise, the same for every picture, and without adapters, which would have learned the
    keyframes. The base denoises well what it finds likely.
    """
    errors = torch.zeros(len(latents), dtype=torch.float64)
    for number, share in enumerate(SHARES):
        noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(number)).to(latents)
        times, noises = torch.full((len(latents),), base.path.time_at(share)), noise.expand_as(latents)
        predicted = base.predict(base.path.add_noise(latents, noises, times), times, conditioning)
        target = base.path.target(latents, noises, times)
        errors += (predicted - target).square().mean(dim=(1, 2, 3)).cpu().double()
    return errors / len(SHARES)


def picture_errors(base: Base, pictures: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    """`mean_errors` (N,) of pictures (N, 3, H, W) in [0, 1] and their N captions."""
    return mean_errors(base, base.encode(pictures).mean, conditioning)


def naturalness(frames: torch.Tensor, keyframes: torch.Tensor) -> float:
    """Mean `picture_errors` of frames over that of the keyframes they lie between: 1 is as natural as those are.

    Above 1: less natural. A cross-fade shows two pictures at once, which is unlikely to the base; so are noise and
    broken shapes. Blur is likely: soft frames come out a little below 1, so this figure does not measure sharpness.
    """
    return float(frames.mean() / keyframes.mean())
