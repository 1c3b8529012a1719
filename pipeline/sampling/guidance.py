"""Pictures from captions alone, with classifier-free guidance (Ho and Salimans 2022)."""

from collections.abc import Sequence

import torch

from pipeline.adapters.mixing import Adapter, mixed_adapters
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.sampling.solver import Predict, Progress, sample


@torch.no_grad()
def sample_captions(
    base: StableDiffusion,
    noise: torch.Tensor,
    conditioning: torch.Tensor,
    adapters: Sequence[Adapter] = (),
    weights: torch.Tensor | None = None,
    *,
    steps: int,
    guidance: float,
    progress: Progress = iter,
) -> torch.Tensor:
    """Clean latents (B, C, h, w) from noise (B, C, h, w) and captions (B, L, D).

    weights: (adapters, B), each adapter's in each sample; None without adapters. guidance g: prediction = empty +
    g (caption - empty); at 1 the empty caption is not evaluated at all.
    """
    given = torch.zeros(0, len(noise)) if weights is None else weights
    if guidance == 1:
        with mixed_adapters(base.unet, adapters, given):
            return sample(noise, lambda x, t: base.predict(x, _all(t, x), conditioning), base.schedule, steps, progress)
    both = torch.cat([base.condition([""]).expand_as(conditioning), conditioning])
    predict = guided(lambda x, t: base.predict(x, _all(t, x), both), guidance)
    # Both halves of the doubled batch see the same adapters.
    with mixed_adapters(base.unet, adapters, torch.cat([given, given], dim=1)):
        return sample(noise, predict, base.schedule, steps, progress)


def guided(predict: Predict, guidance: float, rescale: float = 0.0) -> Predict:
    """Guidance over a `predict` that takes twice the batch: first the rows of the empty or negative caption."""

    def both(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        without, given = predict(torch.cat([latents, latents]), timestep).chunk(2)
        return rescaled(without + guidance * (given - without), given, rescale)

    return both


def _all(timestep: int, latents: torch.Tensor) -> torch.Tensor:
    return torch.full((len(latents),), timestep, device=latents.device)


def rescaled(guided: torch.Tensor, given: torch.Tensor, share: float) -> torch.Tensor:
    """Bring guided predictions (B, C, h, w) back to the spread of the unguided ones, by `share` of the way.

    Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", eqs. 15 and 16: guidance inflates
    predictions, and pictures come out overexposed.
    """
    if share == 0:
        return guided
    factors = given.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(guided, guided * factors, share)
