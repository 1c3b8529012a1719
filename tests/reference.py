"""Slow, obvious implementations that the fast ones must equal. Nothing here is shared with the package's own maths."""

from collections.abc import Mapping

import torch
from diffusers import DDIMScheduler
from torch import nn


def merged_delta(factors: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]], weights: Mapping[str, float]):
    """sum_i w_i (alpha_i / r_i) B_i A_i of one layer; factors: adapter name to (A, B, alpha / rank)."""
    return sum(weights[name] * scale * (b @ a) for name, (a, b, scale) in factors.items() if name in weights)


def merge_into(unet: nn.Module, state: Mapping[str, Mapping[str, torch.Tensor]], scale: float, weights) -> None:
    """Really add each adapter's product to a plain UNet's weights. state: adapter to its LoRA tensors by name."""
    modules = dict(unet.named_modules())
    layers = {key.rsplit(".lora_", 1)[0] for tensors in state.values() for key in tensors}
    for layer in layers:
        factors = {
            name: (tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"], scale)
            for name, tensors in state.items()
        }
        modules[layer].weight.data += merged_delta(factors, weights)


@torch.no_grad()
def ddim_sample(unet, noise, conditioning, scheduler: DDIMScheduler, steps: int):
    """diffusers' own DDIM scheduler, one picture at a time."""
    results = []
    for one, caption in zip(noise, conditioning, strict=True):
        scheduler.set_timesteps(steps)
        latents = one[None]
        for timestep in scheduler.timesteps:
            prediction = unet(latents, timestep, caption[None]).sample
            latents = scheduler.step(prediction, timestep, latents).prev_sample
        results.append(latents)
    return torch.cat(results)


def slerp_by_hand(a: torch.Tensor, b: torch.Tensor, alpha: float) -> torch.Tensor:
    """Shoemake's formula, written for one alpha."""
    angle = torch.arccos((a * b).sum() / a.norm() / b.norm())
    return (torch.sin((1 - alpha) * angle) * a + torch.sin(alpha * angle) * b) / torch.sin(angle)
