"""Cross-attention that computes a caption's keys and values once, and how a layer's attention is replaced."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import Attention


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
        return attend(attn, attn.to_q(hidden_states), *self._known[id(attn)])


@contextmanager
def cached_captions(layers: Sequence[Attention]) -> Iterator[None]:
    """While it lasts, these cross-attention layers must be called with the same captions and adapter weights."""
    with replaced_processor(layers, CaptionAttention()):
        yield


@contextmanager
def replaced_processor(layers: Sequence[Attention], processor: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Let one processor do the attention of these layers, for as long as the context lasts."""
    before = [layer.processor for layer in layers]
    try:
        for layer in layers:
            layer.set_processor(processor)
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.set_processor(own)


def attend(attn: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The layer's output for queries (B, tokens, channels), keys and values (B, n, channels)."""
    split = [part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (query, key, value)]
    return attn.to_out[0](torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))
