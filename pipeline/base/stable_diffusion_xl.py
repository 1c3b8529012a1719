"""Stable Diffusion XL: two text encoders, a pooled caption and the picture's size beside the embedding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from pipeline.base.stable_diffusion import StableDiffusion


@dataclass(frozen=True)
class StableDiffusionXL(StableDiffusion):
    """A frozen base on its device (Podell et al. 2023). empty_is_zero: an empty caption's embedding is all zeros, as in
    the released base's own pipeline.

    Its conditioning is one tensor, as every base's: (B, L + 1, D), the last row the pooled caption, padded with zeros.
    So interpolation and caches treat it as any other.
    """

    text_encoder_2: CLIPTextModelWithProjection
    tokenizer_2: CLIPTokenizer
    empty_is_zero: bool

    def release_encoders(self) -> None:
        """Move the autoencoder and the text encoders off the device, once all is encoded."""
        super().release_encoders()
        self.text_encoder_2.to("cpu")

    @torch.no_grad()
    def condition(self, captions: Sequence[str]) -> torch.Tensor:
        """Captions to embeddings (B, L + 1, D) float32: both encoders' last but one layers side by side, and the pooled
        caption below."""
        states, pooled = [], torch.empty(0)
        for tokenizer, encoder in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)):
            tokens = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
            encoded = encoder(tokens.to(encoder.device), output_hidden_states=True)
            states.append(encoded.hidden_states[-2].float())
            pooled = encoded[0].float()  # of the second: the projection of its last layer
        embeddings = torch.cat(states, dim=-1)
        row = F.pad(pooled, (0, embeddings.shape[-1] - pooled.shape[-1]))
        conditioning = torch.cat([embeddings, row[:, None]], dim=1).to(self.device)
        if self.empty_is_zero:
            conditioning[[number for number, caption in enumerate(captions) if not caption]] = 0
        return conditioning

    def _call_unet(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        # Original size, crop and target size: a prepared picture is whole and as large as it is.
        size = torch.tensor([height, width, 0, 0, height, width], device=latents.device, dtype=latents.dtype)
        pooled = conditioning[:, -1, : self.text_encoder_2.config.projection_dim]
        added = {"text_embeds": pooled, "time_ids": size.expand(len(latents), -1)}
        return self.unet(latents, timesteps, conditioning[:, :-1], added_cond_kwargs=added, return_dict=False)[0]
