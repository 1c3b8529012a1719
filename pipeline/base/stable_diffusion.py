"""Stable Diffusion 1.x and 2.x as a `Base`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from pipeline.base.conditioning import Conditioning, Control
from pipeline.base.families import ADAPTER_PREFIX
from pipeline.base.noise_path import NoisePath
from pipeline.base.posterior import Posterior
from pipeline.base.text_encoders import named_text_encoders
from pipeline.base.tokens import count_tokens

TILED_FROM = 1536
"""Longer side in pixels from which the autoencoder works in overlapping tiles: its memory grows with the picture."""

RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual")
"""What the UNet takes from a ControlNet."""
MASK, SEEN = "mask", "seen"
"""What the UNet of a base that fills holes takes after the latents: where they are hidden, and what is seen."""
GREY = 0.5
"""What is put over the hidden part of a picture before it is encoded: 0 between -1 and 1."""


@dataclass(frozen=True)
class StableDiffusion:
    """A frozen base on its device (Rombach et al. 2022). Its denoiser is a UNet."""

    denoiser: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    path: NoisePath
    device: torch.device
    dtype: torch.dtype
    digest: str
    clip_skip: int
    hidden: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict, kw_only=True, repr=False, compare=False)
    """Latents (1, C, h, w) of a picture of which nothing is seen, by its size; filled as they are asked for."""

    @property
    def adapter_prefix(self) -> str:
        """As diffusers and most LoRA files have it."""
        return ADAPTER_PREFIX

    @property
    def text_encoders(self) -> nn.ModuleDict:
        """The one there is."""
        return named_text_encoders({"text_encoder": self.text_encoder})

    @property
    def latent_channels(self) -> int:
        """C of latents (B, C, h, w)."""
        return int(self.vae.config.latent_channels)

    @property
    def inpaints(self) -> bool:
        """Whether it was trained to fill holes (Rombach et al. 2022, section 4.5): 9 channels in, of 4 latents."""
        return int(self.denoiser.config.in_channels) > self.latent_channels

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along a side of one latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def move_encoders(self, device: torch.device, *, text: bool = True) -> None:
        """Move autoencoder and text encoders: off an accelerator once all is encoded, back to decode."""
        self.vae.to(device)
        if text:
            self.text_encoders.to(device)

    def self_attention(self, blocks: Sequence[str]) -> list[Attention]:
        """`attn1` of the transformers in the UNet's down, mid and up blocks."""
        return [layer for name, layer in self._attention("attn1") if name.split("_")[0] in blocks]

    def cross_attention(self) -> list[Attention]:
        """`attn2` of the transformers, which looks at the caption."""
        return [layer for _, layer in self._attention("attn2")]

    def _attention(self, kind: str) -> list[tuple[str, Attention]]:
        modules = self.denoiser.named_modules()
        return [(name, module) for name, module in modules if isinstance(module, Attention) and name.endswith(kind)]

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

    def caption_length(self, caption: str) -> tuple[int, int]:
        """How many tokens a caption has, and how many are read of it."""
        return count_tokens(self.tokenizer, caption)

    def condition(self, captions: Sequence[str]) -> Conditioning:
        """Captions to `embedding` (B, L, D) float32. What is beyond the `caption_length` read is cut off.

        With gradients where adapters on the text encoder are in training; its own weights are frozen.
        """
        tokens = self.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
        skip, tokens = self.clip_skip, tokens.to(self.text_encoder.device)
        encoded = self.text_encoder(tokens, output_hidden_states=skip > 0)
        embedding = encoded.last_hidden_state
        if skip:  # the layers before, and still the last norm: the base has never seen anything without it
            embedding = self.text_encoder.final_layer_norm(encoded.hidden_states[-1 - skip])
        return Conditioning({"embedding": embedding.float().to(self.device)})

    def surroundings(self, pixels: torch.Tensor, masks: torch.Tensor) -> dict[str, torch.Tensor]:
        """`mask` (B, 1, h, w) and `seen` (B, C, h, w), for pictures (B, 3, H, W) in [0, 1] and masks (B, 1, H, W), 1
        where they are to be filled. Hard masks, one pixel for each latent, are what such bases were trained on."""
        holes = (masks >= 0.5).to(pixels)
        seen = self.encode(torch.lerp(pixels, torch.full_like(pixels, GREY), holes)).mean
        mask = functional.interpolate(holes, seen.shape[-2:], mode="nearest")
        return {MASK: mask.to(self.device), SEEN: seen}

    def condition_negative(self, captions: Sequence[str]) -> Conditioning:
        """Captions that guidance leads away from: as any others."""
        return self.condition(captions)

    def predict(
        self,
        latents: torch.Tensor,
        times: torch.Tensor,
        conditioning: Conditioning,
        control: Control | None = None,
    ) -> torch.Tensor:
        """The UNet's raw prediction (noise or v, see `path`) for latents (B, C, h, w), float32.

        times: (B,) timesteps. A base of lower precision works in it throughout, without autocast, as diffusers' own
        pipelines do: norms sum in float32 anyway, and in float32 their inputs would be kept for gradients a second
        time.
        """
        around = self._around(latents, conditioning) if self.inpaints else []
        lower = self.dtype in (torch.float16, torch.bfloat16)
        times = times.to(latents.device, non_blocking=True)
        latents, conditioning = latents.to(self.dtype), conditioning.to(self.dtype)
        named = self._named_inputs(latents, conditioning)
        if control is not None:
            added = control.net(
                latents,
                times,
                conditioning["embedding"],
                control.picture.to(latents),
                control.scale,
                return_dict=False,
                **named,
            )
            named |= dict(zip(RESIDUALS, added, strict=True))
        inputs = torch.cat([latents, *(tensor.to(latents) for tensor in around)], dim=1) if around else latents
        prediction = self.denoiser(inputs, times, conditioning["embedding"], return_dict=False, **named)[0]
        return prediction.float() if lower else prediction

    def _around(self, latents: torch.Tensor, conditioning: Conditioning) -> list[torch.Tensor]:
        """What goes after latents (B, C, h, w): (B, 1, h, w) and (B, C, h, w). All is hidden where the conditioning
        does not say what is seen."""
        if MASK in conditioning.tensors:
            return [conditioning[MASK], conditioning[SEEN]]
        size = tuple(side * self.pixels_per_latent for side in latents.shape[-2:])
        if size not in self.hidden:
            self.hidden[size] = self.encode(torch.full((1, 3, *size), GREY)).mean
        return [torch.ones_like(latents[:, :1]), self.hidden[size].expand_as(latents)]

    def _named_inputs(self, latents: torch.Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """What the family's UNet and ControlNets take besides."""
        return {}
