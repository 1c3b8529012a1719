"""Draws from what an autoencoder gives for pictures, and seeds that make every draw repeatable."""

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Posterior:
    """The autoencoder's distribution of latents for pictures: mean and std, scaled, each (B, C, h, w) float32."""

    mean: torch.Tensor
    std: torch.Tensor

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """One draw, with noise from a CPU generator so that every device draws the same."""
        noise = torch.randn(self.mean.shape, generator=generator)
        return self.mean + self.std * noise.to(self.mean.device)


def keyed_seed(*parts: object) -> int:
    """A seed of 63 bits that depends on all the parts and on nothing else."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
