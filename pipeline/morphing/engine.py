"""The morph engine: one segment, its two keyframes inverted together and all its frames sampled together."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from pipeline.adapters.mixing import mixed_adapters
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.morphing.ddim import Progress, invert, sample
from pipeline.morphing.interpolation import adain, lerp, slerp


@dataclass(frozen=True)
class Keyframe:
    """A picture as the engine sees it: clean latents (C, h, w), caption embedding (L, D), adapter or none."""

    latents: torch.Tensor
    conditioning: torch.Tensor
    adapter: str | None


@dataclass(frozen=True)
class Segment:
    """Clean latents (F, C, h, w) of the frames at `alphas` (F,), and the inverted noise (2, C, h, w) they come from."""

    alphas: torch.Tensor
    latents: torch.Tensor
    noise: torch.Tensor


def morph_segment(
    base: StableDiffusion,
    first: Keyframe,
    second: Keyframe,
    alphas: torch.Tensor,
    *,
    steps: int,
    use_adain: bool,
    batch: int | None = None,
    progress: Callable[[str], Progress] = lambda label: iter,
) -> Segment:
    """Frames between two keyframes (DiffMorpher, Zhang et al. 2024, without its attention interpolation).

    alphas: (F,) in [0, 1]. Both keyframes are inverted with their own adapter and caption; a frame then has the
    slerp of the two noises, the lerp of the captions and the weights W + (1 - alpha) D0 + alpha D1. `batch` frames at
    most go through the UNet at once; None: all.
    """
    ends = torch.tensor([0.0, 1.0])
    with torch.no_grad():
        with mixed_adapters(base.unet, adapter_weights_at(first, second, ends, base.device)):
            conditioning = torch.stack([first.conditioning, second.conditioning])
            noise = invert(
                torch.stack([first.latents, second.latents]),
                _predictor(base, conditioning),
                base.schedule,
                steps,
                progress("invert"),
            )
        parts = []
        for part in alphas.split(batch or len(alphas)):
            start = slerp(noise[0], noise[1], part)
            if use_adain:
                start = adain(start, noise[0], noise[1], part)
            conditioning = lerp(first.conditioning, second.conditioning, part)
            with mixed_adapters(base.unet, adapter_weights_at(first, second, part, base.device)):
                parts.append(sample(start, _predictor(base, conditioning), base.schedule, steps, progress("frames")))
    return Segment(alphas, torch.cat(parts), noise)


def adapter_weights_at(
    first: Keyframe, second: Keyframe, alphas: torch.Tensor, device: torch.device
) -> dict[str, torch.Tensor]:
    """Adapter name to its weight (F,) in each frame. One adapter shared by both keyframes stays constant at 1."""
    weights: dict[str, torch.Tensor] = {}
    for keyframe, share in ((first, 1 - alphas), (second, alphas)):
        if keyframe.adapter is not None:
            weights[keyframe.adapter] = weights.get(keyframe.adapter, 0) + share.to(device)
    return weights


def cross_fade(first: torch.Tensor, second: torch.Tensor, alphas: Iterable[float]) -> torch.Tensor:
    """The baseline: pictures (3, H, W) laid over each other, (F, 3, H, W)."""
    return lerp(first, second, torch.tensor(list(alphas)))


def _predictor(base: StableDiffusion, conditioning: torch.Tensor) -> Callable[[torch.Tensor, int], torch.Tensor]:
    def predict(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        timesteps = torch.full((len(latents),), timestep, device=latents.device)
        return base.predict(latents, timesteps, conditioning)

    return predict
