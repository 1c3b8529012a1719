"""Stable Diffusion 1.x and 2.x: what the rest of the house needs of a base."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from pipeline.base.noise_path import NoiseSchedule

TILED_FROM = 1536
"""Longer side in pixels from which the autoencoder works in overlapping tiles: its memory grows with the picture."""


@dataclass(frozen=True)
class Posterior:
    """What the autoencoder says of pictures: scaled latents with mean and std, each (B, C, h, w) float32."""

    mean: torch.Tensor
    std: torch.Tensor

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """One draw, with noise from a CPU generator so that every device draws the same."""
        noise = torch.randn(self.mean.shape, generator=generator)
        return self.mean + self.std * noise.to(self.mean.device)


@dataclass(frozen=True)
class StableDiffusion:
    """A frozen base on its device. `digest` says which one it is; `schedule` how it adds noise."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    schedule: NoiseSchedule
    device: torch.device
    dtype: torch.dtype
    digest: str

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along a side of one latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def release_encoders(self) -> None:
        """Move the autoencoder and the text encoder off the device, once all is encoded."""
        self.vae.to("cpu")
        self.text_encoder.to("cpu")

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> Posterior:
        """Pictures (B, 3, H, W) float32 in [0, 1] to latents scaled to about unit variance."""
        inputs = (pixels * 2 - 1).to(self.vae.device, self.vae.dtype)
        self.vae.use_tiling = max(pixels.shape[-2:]) >= TILED_FROM
        posteriors = [self.vae.encode(picture[None]).latent_dist for picture in inputs]
        scale = self.vae.config.scaling_factor
        return Posterior(
            torch.cat([posterior.mean for posterior in posteriors]).float().to(self.device) * scale,
            torch.cat([posterior.std for posterior in posteriors]).float().to(self.device) * scale,
        )

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, C, h, w) to pictures (B, 3, H, W) float32 in [0, 1]; one by one through the decoder.

        Raises:
            FloatingPointError: when latents are not finite, which would give black pictures.
        """
        if not bool(latents.isfinite().all()):
            raise FloatingPointError("the latents are not finite; use base.dtype: float32, or train at a lower rate")
        unscaled = (latents / self.vae.config.scaling_factor).to(self.vae.device, self.vae.dtype)
        self.vae.use_tiling = max(latents.shape[-2:]) * self.pixels_per_latent >= TILED_FROM
        pictures = [self.vae.decode(latent[None]).sample for latent in unscaled]
        return (torch.cat(pictures).float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def condition(self, captions: Sequence[str]) -> torch.Tensor:
        """Captions to embeddings (B, L, D) float32. `check` has refused captions that would be cut off."""
        tokens = self.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.text_encoder(tokens.to(self.text_encoder.device)).last_hidden_state.float().to(self.device)

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        """The UNet's raw prediction (noise or v, see `schedule`) for latents (B, C, h, w), float32.

        timesteps: (B,) integers. Under a base of lower precision the adapters' float32 weights need autocast.
        """
        lower = self.dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(self.device.type, self.dtype if lower else None, enabled=lower):
            prediction = self._call_unet(latents.to(self.dtype), timesteps, conditioning.to(self.dtype))
        return prediction.float() if lower else prediction

    def _call_unet(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        return self.unet(latents, timesteps, conditioning, return_dict=False)[0]
