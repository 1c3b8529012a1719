"""Stable Diffusion XL as a `Base`: two text encoders, a pooled caption and the picture's size beside the embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from pipeline.base.conditioning import Conditioning
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.base.text_encoders import named_text_encoders


@dataclass(frozen=True)
class StableDiffusionXL(StableDiffusion):
    """A frozen base on its device (Podell et al. 2023). empty_is_zero: an empty caption's embedding is all zeros, as in
    the released base's own pipeline."""

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
        states, pooled = [], torch.empty(0)
        for tokenizer, encoder in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)):
            tokens = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
            encoded = encoder(tokens.to(encoder.device), output_hidden_states=True)
            states.append(encoded.hidden_states[-2 - self.clip_skip].float())
            pooled = encoded[0].float()  # of the second: the projection of its last layer
        conditioning = {"embedding": torch.cat(states, dim=-1).to(self.device), "pooled": pooled.to(self.device)}
        if self.empty_is_zero:
            for tensor in conditioning.values():
                tensor[[number for number, caption in enumerate(captions) if not caption]] = 0
        return Conditioning(conditioning)

    def _named_inputs(self, latents: torch.Tensor, conditioning: Conditioning) -> dict[str, Any]:
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        # Original size, crop and target size: a prepared picture is whole and as large as it is.
        size = torch.tensor([height, width, 0, 0, height, width], device=latents.device, dtype=latents.dtype)
        added = {"text_embeds": conditioning["pooled"], "time_ids": size.expand(len(latents), -1)}
        return {"added_cond_kwargs": added}
