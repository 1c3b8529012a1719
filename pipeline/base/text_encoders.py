"""The text encoders of a base under the names that adapters' files have for their layers."""

from collections.abc import Mapping

from torch import nn


def named_text_encoders(encoders: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """Text encoders by their part (`text_encoder`, `text_encoder_2`) as one module; nothing is copied.

    Its layers are called `text_encoder.text_model.encoder.layers.0.self_attn.q_proj` and so on, as diffusers, kohya and
    peft have always written them, also where transformers keeps that model without the `text_model` around it.
    """
    usual = {
        part: encoder if hasattr(encoder, "text_model") else nn.ModuleDict({"text_model": encoder})
        for part, encoder in encoders.items()
    }
    return nn.ModuleDict(usual)
