"""What the rest of the project asks of a base, whatever its family. A new family is one file beside this one."""

from collections.abc import Sequence
from typing import Protocol

import torch
from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention
from torch import nn

from pipeline.base.conditioning import Conditioning, Control
from pipeline.base.noise_path import NoisePath
from pipeline.base.posterior import Posterior


class Adaptable(Protocol):
    """What adapters go on: an opened base, or its layers without weights, for questions about them."""

    @property
    def denoiser(self) -> ModelMixin:
        """The module whose layers adapters' files name after `adapter_prefix`."""
        ...

    @property
    def text_encoders(self) -> nn.ModuleDict:
        """Those that read captions, by part, such as `text_encoder`; adapters' files name their layers as they are
        called in here (see `named_text_encoders`)."""
        ...


class Base(Adaptable, Protocol):
    """A frozen base on its device."""

    @property
    def path(self) -> NoisePath:
        """How it adds noise, and what it predicts."""
        ...

    @property
    def adapter_prefix(self) -> str:
        """What diffusers puts before that module's names in a LoRA file, such as `unet.`."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the denoiser works."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its weights."""
        ...

    @property
    def digest(self) -> str:
        """Which base it is, in one line."""
        ...

    @property
    def latent_channels(self) -> int:
        """C of latents (B, C, h, w)."""
        ...

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along a side of one latent."""
        ...

    @property
    def inpaints(self) -> bool:
        """Whether it was trained to fill holes, and takes what `surroundings` gives beside a caption."""
        ...

    def encode(self, pixels: torch.Tensor) -> Posterior:
        """Pictures (B, 3, H, W) float32 in [0, 1] to latents scaled to about unit variance."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, C, h, w) to pictures (B, 3, H, W) float32 in [0, 1].

        Raises:
            FloatingPointError: when latents are not finite, which would give black pictures.
        """
        ...

    def caption_length(self, caption: str) -> tuple[int, int]:
        """How many tokens a caption has, and how many are read of it."""
        ...

    def condition(self, captions: Sequence[str]) -> Conditioning:
        """Captions to what `predict` takes, float32, one row each; with gradients where adapters on the text encoders
        are in training."""
        ...

    def surroundings(self, pixels: torch.Tensor, masks: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a base that fills holes takes beside captions, for pictures (B, 3, H, W) in [0, 1] and masks (B, 1, H,
        W), 1 where they are to be filled. Without it such a base takes everything to be hidden."""
        ...

    def condition_negative(self, captions: Sequence[str]) -> Conditioning:
        """The same of captions that guidance leads away from."""
        ...

    def predict(
        self,
        latents: torch.Tensor,
        times: torch.Tensor,
        conditioning: Conditioning,
        control: Control | None = None,
    ) -> torch.Tensor:
        """The denoiser's raw prediction (see `path`) for latents (B, C, h, w), float32. times: (B,)."""
        ...

    def move_encoders(self, device: torch.device, *, text: bool = True) -> None:
        """Move autoencoder and text encoders: off an accelerator once all is encoded, back to decode.

        text: False where the text encoders stay, because adapters on them are in training.
        """
        ...

    def self_attention(self, blocks: Sequence[str]) -> list[Attention]:
        """The layers whose queries, keys and values all come from the picture, in some of the blocks
        "down", "mid", "up"."""
        ...

    def cross_attention(self) -> list[Attention]:
        """The layers whose keys and values come from the caption alone; none where both go through one attention."""
        ...
