"""Self-attention of frames that looks at their two endpoints (DiffMorpher, Zhang et al. 2024, section 4.2), and
cross-attention that computes a caption's keys and values once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

Source = Literal["inputs", "keys-values"]
BLOCKS = ("down", "mid", "up")


class EndpointAttention:
    """Keys and values of every frame come from the interpolation of the two endpoints', at the very same step.

    The batch holds, once or (under guidance) several times over, first endpoint, second endpoint, frames. `alphas` (n,)
    says where each of them lies; the endpoints, at 0 and 1, so attend to themselves. Nothing is stored between steps.
    source: interpolate what keys and values are computed from ("inputs", with the frame's own weights, eq. 7), or the
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
            return self._plain(attn, hidden_states, self._interpolated(hidden_states))
        query = attn.to_q(hidden_states)
        key, value = self._interpolated(attn.to_k(hidden_states)), self._interpolated(attn.to_v(hidden_states))
        return _attention(attn, query, key, value)

    def _interpolated(self, states: torch.Tensor) -> torch.Tensor:
        """Each sample's states (B, tokens, channels) replaced by those between its endpoints'."""
        groups = states.unflatten(0, (-1, len(self.alphas)))
        first, second = groups[:, :1], groups[:, 1:2]
        return torch.lerp(first, second, self.alphas.to(states).view(1, -1, 1, 1)).flatten(0, 1)


@contextmanager
def endpoint_attention(
    layers: Sequence[Attention], alphas: torch.Tensor, source: Source
) -> Iterator[EndpointAttention]:
    """Give these self-attention layers to one EndpointAttention, for as long as the context lasts."""
    shared = EndpointAttention(alphas, source)
    with _processor(layers, shared):
        yield shared


class CaptionAttention:
    """Cross-attention that computes each caption's keys and values once: over the steps nothing in them changes."""

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
        return _attention(attn, attn.to_q(hidden_states), *self._known[id(attn)])


@contextmanager
def captions_once(layers: Sequence[Attention]) -> Iterator[None]:
    """While it lasts, these cross-attention layers must be called with the same captions and adapter weights."""
    with _processor(layers, CaptionAttention()):
        yield


@contextmanager
def _processor(layers: Sequence[Attention], processor: Callable[..., torch.Tensor]) -> Iterator[None]:
    before = [layer.processor for layer in layers]
    try:
        for layer in layers:
            layer.set_processor(processor)
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.set_processor(own)


def _attention(attn: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What attention gives for queries (B, tokens, channels), keys and values (B, n, channels)."""
    split = [part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (query, key, value)]
    return attn.to_out[0](torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))
