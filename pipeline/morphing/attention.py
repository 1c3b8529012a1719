"""Self-attention of frames that looks at their two endpoints (DiffMorpher, Zhang et al. 2024, section 4.2)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

Source = Literal["inputs", "keys-values"]
BLOCKS = ("down", "mid", "up")


class EndpointAttention:
    """Keys and values of every frame come from the interpolation of the two endpoints', at the very same step.

    The batch holds, once or (under guidance) several times over, first endpoint, second endpoint, frames. `alphas` (n,)
    says where each of them lies; the endpoints, at 0 and 1, so attend to themselves. Nothing is stored between steps.
    source: interpolate what keys and values are made from ("inputs", with the frame's own weights, eq. 7), or the
    endpoints' own keys and values.
    """

    def __init__(self, alphas: torch.Tensor, source: Source) -> None:
        self.alphas = alphas
        self.source = source
        self.on = True
        self._plain = AttnProcessor2_0()

    def __call__(self, attn: Attention, hidden_states: torch.Tensor, *given: object, **named: object) -> torch.Tensor:
        """As diffusers calls it for self-attention: hidden states (B, tokens, channels)."""
        if not self.on:
            return self._plain(attn, hidden_states, *given, **named)
        if self.source == "inputs":
            return self._plain(attn, hidden_states, self._between(hidden_states))
        query = attn.to_q(hidden_states)
        key, value = self._between(attn.to_k(hidden_states)), self._between(attn.to_v(hidden_states))
        return _attended(attn, query, key, value)

    def _between(self, states: torch.Tensor) -> torch.Tensor:
        """Each sample's states (B, tokens, channels) replaced by those between its endpoints'."""
        groups = states.unflatten(0, (-1, len(self.alphas)))
        first, second = groups[:, :1], groups[:, 1:2]
        return torch.lerp(first, second, self.alphas.to(states).view(1, -1, 1, 1)).flatten(0, 1)


@contextmanager
def endpoint_attention(
    unet: UNet2DConditionModel, alphas: torch.Tensor, blocks: Sequence[str], source: Source
) -> Iterator[EndpointAttention]:
    """Give the self-attention of the chosen blocks ("down", "mid", "up") to an EndpointAttention; then restore it."""
    before = dict(unet.attn_processors)
    shared = EndpointAttention(alphas, source)
    chosen = {
        name: shared if name.endswith("attn1.processor") and name.split("_")[0] in blocks else processor
        for name, processor in before.items()
    }
    unet.set_attn_processor(dict(chosen))
    try:
        yield shared
    finally:
        unet.set_attn_processor(dict(before))


class CaptionAttention:
    """Cross-attention that makes each caption's keys and values once: over the steps nothing in them changes."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *given: object,
        **named: object,
    ) -> torch.Tensor:
        """As diffusers calls it for cross-attention: hidden states (B, tokens, channels), captions (B, L, D)."""
        if id(attn) not in self._known:
            self._known[id(attn)] = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        return _attended(attn, attn.to_q(hidden_states), *self._known[id(attn)])


def _attended(attn: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What attention makes of queries (B, tokens, channels), keys and values (B, n, channels)."""
    split = [part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (query, key, value)]
    return attn.to_out[0](torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


@contextmanager
def captions_once(unet: UNet2DConditionModel) -> Iterator[None]:
    """While it lasts, the UNet must be called with the same captions and adapter weights; then restore it."""
    before = dict(unet.attn_processors)
    shared = CaptionAttention()
    unet.set_attn_processor({name: shared if name.endswith("attn2.processor") else own for name, own in before.items()})
    try:
        yield
    finally:
        unet.set_attn_processor(dict(before))
