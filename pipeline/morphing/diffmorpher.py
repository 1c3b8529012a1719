"""What frames may take from their keyframes besides noise, caption and weights: channel statistics and self-attention.

As DiffMorpher has them (Zhang et al. 2024, sections 4.2 and 4.3). Neither is on by default, and the plain path through
the engine is complete without this file.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from pipeline.base.noise_path import Level
from pipeline.morphing.attention import attend, replaced_processor
from pipeline.morphing.interpolation import lerp
from pipeline.sampling.solver import Predict, step_at

Source = Literal["inputs", "keys-values"]


@dataclass(frozen=True)
class KeyframeAttention:
    """Self-attention of frames from their endpoints: in which blocks ("down", "mid", "up"), for which first share of
    the steps, and what is interpolated."""

    blocks: tuple[str, ...]
    until: float
    source: Source


def adain(latents: torch.Tensor, x0: torch.Tensor, x1: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """Give each latent (F, C, h, w) the channel means and stds that lie linearly between x0's and x1's (C, h, w).

    Adaptive instance normalisation (Huang and Belongie 2017), as DiffMorpher (eq. 9) applies it.
    """
    means = lerp(x0.mean(dim=(1, 2)), x1.mean(dim=(1, 2)), alphas)[..., None, None]
    stds = lerp(x0.std(dim=(1, 2)), x1.std(dim=(1, 2)), alphas)[..., None, None]
    own_mean = latents.mean(dim=(2, 3), keepdim=True)
    own_std = latents.std(dim=(2, 3), keepdim=True).clamp_min(torch.finfo(latents.dtype).tiny)
    return (latents - own_mean) / own_std * stds + means


class EndpointAttention:
    """Keys and values of every frame come from the interpolation of the two endpoints', at the very same step.

    The batch holds, once or (under guidance) several times over, first endpoint, second endpoint, frames. `alphas` (n,)
    gives the position of each; the endpoints, at 0 and 1, so attend to themselves. Nothing is stored between steps.
    source: interpolate what keys and values are computed from ("inputs", with the frame's own weights, eq. 7), or the
    endpoints' own keys and values.
    """

    def __init__(self, alphas: torch.Tensor, source: Source) -> None:
        self.alphas = alphas
        self.source = source
        self.on = True
        self._moved = dict[tuple[torch.device, torch.dtype], torch.Tensor]()
        self._plain = AttnProcessor2_0()

    def __call__(self, attn: Attention, hidden_states: torch.Tensor, *given: object, **named: object) -> torch.Tensor:
        """As diffusers calls it for self-attention: hidden states (B, tokens, channels)."""
        if not self.on:
            return self._plain(attn, hidden_states, *given, **named)
        if self.source == "inputs":
            return self._plain(attn, hidden_states, self._interpolated(hidden_states))
        query = attn.to_q(hidden_states)
        key, value = self._interpolated(attn.to_k(hidden_states)), self._interpolated(attn.to_v(hidden_states))
        return attend(attn, query, key, value)

    def _interpolated(self, states: torch.Tensor) -> torch.Tensor:
        """Each sample's states (B, tokens, channels) replaced by those between its endpoints'."""
        groups = states.unflatten(0, (-1, len(self.alphas)))
        first, second = groups[:, :1], groups[:, 1:2]
        kind = states.device, states.dtype
        if kind not in self._moved:  # once: a copy from the host waits for all that a GPU has to do
            self._moved[kind] = self.alphas.to(states).view(1, -1, 1, 1)
        return torch.lerp(first, second, self._moved[kind]).flatten(0, 1)


@contextmanager
def endpoint_attention(
    layers: Sequence[Attention], alphas: torch.Tensor, source: Source
) -> Iterator[EndpointAttention]:
    """Give these self-attention layers to one EndpointAttention, for as long as the context lasts."""
    shared = EndpointAttention(alphas, source)
    with replaced_processor(layers, shared):
        yield shared


def in_first_steps(
    with_it: Predict, without: Predict, attention: EndpointAttention, levels: Sequence[Level], switch: int
) -> Predict:
    """One prediction with the endpoints' attention, in the first `switch` steps along falling levels alone, and another
    without it."""

    def switched(latents: torch.Tensor, level: Level) -> torch.Tensor:
        attention.on = step_at(level, levels) < switch
        return (with_it if attention.on else without)(latents, level)

    return switched
