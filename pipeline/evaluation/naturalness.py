"""How natural a frame looks to the base itself: nothing has to be downloaded."""

from collections.abc import Iterable

import torch

from pipeline.base.conditioning import Conditioning
from pipeline.base.protocol import Base

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4)
"""Timesteps, in shares of the schedule: low enough that a double exposure is still visible through the noise."""


@torch.no_grad()
def mean_errors(
    base: Base, latents: torch.Tensor, conditioning: Conditioning, batch: int | None = None
) -> torch.Tensor:
    """Mean squared error (N,) of the base's noise or v for clean latents (N, C, h, w) and N captions.

    At fixed timesteps and noise, the same for every picture, and without adapters, which would have learned the
    keyframes. The base denoises well what it finds likely.
    """
    errors = torch.zeros(len(latents), dtype=torch.float64)
    for number, share in enumerate(SHARES):
        noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(number)).to(latents)
        time = base.path.time_at(share)
        parts = []
        for rows in torch.arange(len(latents)).split(batch or len(latents)):
            part, captions = latents[rows], conditioning.take(rows)
            times = torch.full((len(part),), time)
            noises = noise.expand_as(part)
            predicted = base.predict(base.path.add_noise(part, noises, times), times, captions)
            target = base.path.target(part, noises, times)
            parts.append((predicted - target).square().mean(dim=(1, 2, 3)).cpu().double())
        errors += torch.cat(parts)
    return errors / len(SHARES)


def naturalness(
    base: Base,
    frames: Iterable[tuple[torch.Tensor, Conditioning]],
    keyframes: Iterable[tuple[torch.Tensor, Conditioning]],
    batch: int | None = None,
) -> float:
    """Mean denoising error of frames over that of the keyframes they lie between: 1 is as natural as those are.

    Both in parts, each pictures (N, 3, H, W) and their N captions. Above 1: less natural. A cross-fade
    shows two pictures at once, which is unlikely to the base; so are noise and broken shapes. Blur is likely: soft
    frames come out a little below 1, so this figure does not measure sharpness.
    """

    def error(parts: Iterable[tuple[torch.Tensor, Conditioning]]) -> torch.Tensor:
        errors = [mean_errors(base, base.encode(pictures).mean, captions, batch) for pictures, captions in parts]
        return torch.cat(errors).mean()

    return float(error(frames) / error(keyframes))
