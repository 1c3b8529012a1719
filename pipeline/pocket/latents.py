"""The scale of the pocket's latents: kept even in training, folded into the autoencoder's convolutions afterwards.

Stable Diffusion's layout knows one scaling factor only; per-channel statistics serve the diffusion model better.
"""

import torch
from diffusers import AutoencoderKL
from torch import nn

MOMENTUM = 0.02


class LatentNorm(nn.Module):
    """Latents (B, C, h, w) by running means and stds of their channels; gradients as through the batch's own.

    Batch renormalisation (Ioffe 2017). So the encoder cannot outgrow the noise that is added, and no weight of a KL
    term has to be found. With the batch's own statistics the decoder would see latents scaled otherwise than at use.
    """

    mean: torch.Tensor
    std: torch.Tensor
    started: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """The latents on the scale of the running statistics, which take this batch in."""
        mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
        with torch.no_grad():
            share = torch.where(self.started, MOMENTUM, 1.0)
            self.mean.lerp_(mean, share)
            self.std.lerp_(std, share)
            self.started.fill_(True)
            scale, shift = std / self.std, (mean - self.mean) / self.std
        own = (latents - _spread(mean)) / _spread(std)
        return own * _spread(scale) + _spread(shift)


def _spread(channels: torch.Tensor) -> torch.Tensor:
    return channels.view(1, -1, 1, 1)


def standardise(autoencoder: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Fold a per-channel mean and std (C,) into the 1x1 convolutions: standardised latents that decode as before."""
    standardise_encoder(autoencoder, mean, std)
    standardise_decoder(autoencoder, mean, std)


@torch.no_grad()
def standardise_encoder(autoencoder: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Let the encoder give (latents - mean) / std."""
    to_latents, channels = autoencoder.quant_conv, mean.numel()
    to_latents.weight[:channels] /= std.view(-1, 1, 1, 1)
    to_latents.bias[:channels] = (to_latents.bias[:channels] - mean) / std
    to_latents.bias[channels:] -= 2 * std.log()  # the posterior's log variance


@torch.no_grad()
def standardise_decoder(autoencoder: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Let the decoder take latents z for what were z * std + mean."""
    from_latents = autoencoder.post_quant_conv
    from_latents.bias += from_latents.weight[:, :, 0, 0] @ mean
    from_latents.weight *= std.view(1, -1, 1, 1)


@torch.no_grad()
def fix_posterior_std(autoencoder: AutoencoderKL, std: torch.Tensor) -> None:
    """Let the encoder answer one std per channel (C,) for every picture: the noise that the decoder can bear."""
    channels = std.numel()
    autoencoder.quant_conv.weight[channels:] = 0
    autoencoder.quant_conv.bias[channels:] = 2 * std.log()
