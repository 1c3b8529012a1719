"""Several adapters in one batch, each sample with its own weight for each of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from torch import nn


@contextmanager
def mixed_adapters(unet: UNet2DConditionModel, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Let sample b of a batch see W + sum_i w_i[b] s_i B_i A_i, for as long as the context lasts.

    s_i is alpha_i / r_i, or alpha_i / sqrt(r_i) for a rank-stabilised adapter.

    weights: adapter name to (B,), B the batch that the UNet is called with. Only the products B A are weighed, never
    the factors. Adapters that are not named, and all of them when none is, contribute nothing. Afterwards the scaling
    is as it was.
    """
    layers = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    if not layers:
        if weights:
            raise ValueError(f"the UNet has no adapters, but weights are given for {sorted(weights)}")
        yield
        return
    before = [(dict(layer.scaling), list(layer.active_adapters)) for layer in layers]
    try:
        for layer in layers:
            layer._active_adapter = [name for name in weights if name in layer.scaling]
            for name in layer._active_adapter:
                root = 0.5 if layer.use_rslora[name] else 1.0
                scale = layer.lora_alpha[name] / layer.r[name] ** root
                layer.scaling[name] = (weights[name].float() * scale).view(-1, *[1] * _trailing_dimensions(layer))
        yield
    finally:
        for layer, (scaling, active) in zip(layers, before, strict=True):
            layer.scaling.update(scaling)
            layer._active_adapter = active


def _trailing_dimensions(layer: LoraLayer) -> int:
    """Dimensions after the batch: attention sees (B, tokens, channels), a convolution (B, channels, h, w)."""
    return 3 if isinstance(layer.get_base_layer(), nn.Conv2d) else 2
