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


def drawn_latents(posterior: Posterior, pictures: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) of pictures (B, 3, H, W): one draw from each posterior, always the same for a picture.

    Not the mean: the base was trained on draws, and means lie where it has seen nothing, so that inverting them gives
    noise that is too small.
    """
    drawn = []
    for picture, mean, std in zip(pictures, posterior.mean, posterior.std, strict=True):
        generator = torch.Generator().manual_seed(keyed_seed(hashlib.sha256(picture.numpy().tobytes()).hexdigest()))
        drawn.append(Posterior(mean[None], std[None]).sample(generator))
    return torch.cat(drawn)


def keyed_seed(*parts: object) -> int:
    """A seed of 63 bits that depends on all the parts and on nothing else."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
