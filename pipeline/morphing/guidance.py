"""Pictures from captions alone, with classifier-free guidance (Ho and Salimans 2022)."""

import torch

from pipeline.adapters.mixing import mixed_adapters
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.morphing.ddim import Progress, sample


@torch.no_grad()
def sample_captions(
    base: StableDiffusion,
    noise: torch.Tensor,
    conditioning: torch.Tensor,
    adapters: dict[str, torch.Tensor],
    *,
    steps: int,
    guidance: float,
    progress: Progress = iter,
) -> torch.Tensor:
    """Clean latents (B, C, h, w) from noise (B, C, h, w) and captions (B, L, D).

    adapters: name to weight (B,) of each sample. guidance g: prediction = empty + g (caption - empty); at 1 the empty
    caption is not evaluated at all.
    """
    if guidance == 1:
        with mixed_adapters(base.unet, adapters):
            return sample(noise, lambda x, t: base.predict(x, _all(t, x), conditioning), base.schedule, steps, progress)
    empty = base.condition([""]).expand_as(conditioning)
    both = torch.cat([empty, conditioning])

    def predict(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        doubled = torch.cat([latents, latents])
        without, with_caption = base.predict(doubled, _all(timestep, doubled), both).chunk(2)
        return without + guidance * (with_caption - without)

    # Both halves of the doubled batch see the same adapters.
    with mixed_adapters(base.unet, {name: torch.cat([weight, weight]) for name, weight in adapters.items()}):
        return sample(noise, predict, base.schedule, steps, progress)


def _all(timestep: int, latents: torch.Tensor) -> torch.Tensor:
    return torch.full((len(latents),), timestep, device=latents.device)
