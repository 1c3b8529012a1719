"""Stable Diffusion XL and its refiner as a `Base`: a pooled caption and the picture's size beside the embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipeline.base.conditioning import Conditioning
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.base.text_encoders import named_text_encoders

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
"""What the refiner is told of how much people liked the picture, and of what guidance leads away from, as in diffusers'
own pipeline."""

Encoder = tuple[CLIPTokenizer, CLIPTextModel | CLIPTextModelWithProjection]


@dataclass(frozen=True)
class StableDiffusionXL(StableDiffusion):
    """A frozen base on its device (Podell et al. 2023) with two text encoders. empty_is_zero: an empty caption's
    embedding is all zeros, as in the released base's own pipeline."""

    text_encoder_2: CLIPTextModelWithProjection
    tokenizer_2: CLIPTokenizer
    empty_is_zero: bool

    @property
    def text_encoders(self) -> nn.ModuleDict:
        """Both."""
        return named_text_encoders({"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2})

    def condition(self, captions: Sequence[str]) -> Conditioning:
        """Captions to `embedding` (B, L, D), both encoders' last but one layers (or earlier, see `clip_skip`) side by
        side, and `pooled` (B, P), the second encoder's projection; both float32.
        With gradients where adapters on the encoders are in training; their own weights are frozen."""
        encoders = [(self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)]
        encoded = _encoded(captions, encoders, self.clip_skip, self.empty_is_zero)
        return Conditioning(encoded).to(self.device)

    def _named_inputs(self, latents: torch.Tensor, conditioning: Conditioning) -> dict[str, Any]:
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        # Original size, crop and target size: a prepared picture is whole and as large as it is.
        size = _numbers((height, width, 0, 0, height, width), latents.device, latents.dtype)
        return _added(conditioning, size.expand(len(latents), -1))


@dataclass(frozen=True)
class StableDiffusionXLRefiner(StableDiffusion):
    """The refiner (Podell et al. 2023, section 2.5): only the second of the text encoders, and an aesthetic score in
    place of the target size. It was trained with the last but one layer, so that `clip_skip` is not its own."""

    empty_is_zero: bool

    def condition(self, captions: Sequence[str]) -> Conditioning:
        """Captions to `embedding` (B, L, D), `pooled` (B, P) and `aesthetic_score` (B, 1), all float32."""
        return self._scored(captions, AESTHETIC_SCORE)

    def condition_negative(self, captions: Sequence[str]) -> Conditioning:
        """The same of captions that guidance leads away from: of pictures that people liked less."""
        return self._scored(captions, NEGATIVE_AESTHETIC_SCORE)

    @torch.no_grad()
    def _scored(self, captions: Sequence[str], score: float) -> Conditioning:
        encoded = _encoded(captions, [(self.tokenizer, self.text_encoder)], 0, self.empty_is_zero)
        scores = torch.full((len(captions), 1), score)
        return Conditioning({**encoded, "aesthetic_score": scores}).to(self.device)

    def _named_inputs(self, latents: torch.Tensor, conditioning: Conditioning) -> dict[str, Any]:
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        # Original size and crop.
        size = _numbers((height, width, 0, 0), latents.device, latents.dtype)
        return _added(conditioning, torch.cat([size.expand(len(latents), -1), conditioning["aesthetic_score"]], dim=1))


@cache
def _numbers(values: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """On the device once: a copy from the host is a wait, and cannot be recorded."""
    return torch.tensor(values, device=device, dtype=dtype)


def _encoded(
    captions: Sequence[str], encoders: Sequence[Encoder], clip_skip: int, empty_is_zero: bool
) -> dict[str, torch.Tensor]:
    states, pooled = [], torch.empty(0)
    for tokenizer, encoder in encoders:
        tokens = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
        encoded = encoder(tokens.to(encoder.device), output_hidden_states=True)
        states.append(encoded.hidden_states[-2 - clip_skip].float())
        pooled = encoded[0].float()  # of the last: the projection of its last layer
    conditioning = {"embedding": torch.cat(states, dim=-1), "pooled": pooled}
    if empty_is_zero:
        for tensor in conditioning.values():
            tensor[[number for number, caption in enumerate(captions) if not caption]] = 0
    return conditioning


def _added(conditioning: Conditioning, numbers: torch.Tensor) -> dict[str, Any]:
    return {"added_cond_kwargs": {"text_embeds": conditioning["pooled"], "time_ids": numbers}}
