"""Pictures from captions alone, with classifier-free guidance (Ho and Salimans 2022)."""

from collections.abc import Sequence

import torch

from pipeline.adapters.mixing import Adapter, mixed_adapters
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.morphing.ddim import Progress, sample


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
    empty = base.condition([""]).expand_as(conditioning)
    both = torch.cat([empty, conditioning])

    def predict(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        doubled = torch.cat([latents, latents])
        without, with_caption = base.predict(doubled, _all(timestep, doubled), both).chunk(2)
        return without + guidance * (with_caption - without)

    # Both halves of the doubled batch see the same adapters.
    with mixed_adapters(base.unet, adapters, torch.cat([given, given], dim=1)):
        return sample(noise, predict, base.schedule, steps, progress)


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
