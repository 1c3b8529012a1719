"""Adapters that change how captions are read, and captions read by encoders that really are changed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.adapters.lora import lora_config, read_adapter, save_adapter
from pipeline.adapters.mixing import Adapter, WeightedAdapter
from pipeline.base.conditioning import Conditioning
from pipeline.base.protocol import Base
from pipeline.training.pack import AdapterPack
from tests.reference import merged, random_adapters
from tests.training.settings import SETTINGS

READING = SETTINGS.model_copy(update={"text_rate": 2e-3})


def random_text_adapters(base: Base, count: int, rank: int = 2) -> list[Adapter]:
    """As `random_adapters`, on the attention layers of the text encoders, too."""
    adapters = []
    for number, adapter in enumerate(random_adapters(base.denoiser, count, rank)):
        generator = torch.Generator().manual_seed(100 + number)
        text = {
            name: (
                torch.randn(rank, module.in_features, generator=generator) / 4,
                torch.randn(module.out_features, rank, generator=generator) / 4,
            )
            for name, module in base.text_encoders.named_modules()
            if isinstance(module, nn.Linear) and "self_attn" in name
        }
        adapters.append(Adapter({**adapter.factors, **text}, adapter.scale))
    return adapters


def read_alone(base: Base, caption: str, adapters: Sequence[WeightedAdapter]) -> Conditioning:
    """One caption, by text encoders whose weights really are changed."""
    of_text = [
        (Adapter({name: pair for name, pair in one.factors.items() if name.startswith("text_")}, one.scale), weight)
        for one, weight in adapters
    ]
    changed = {}
    for part, encoder in merged(base.text_encoders, of_text).items():
        changed[part] = encoder["text_model"] if isinstance(encoder, nn.ModuleDict) else encoder
    return replace(base, **changed).condition([caption])


def saved_adapter(base: Base, path: Path, **changes: Any) -> Adapter:
    """Save an adapter as trained ones are saved, with random factors; as it is read back."""
    settings = READING.model_copy(update={"alpha": 3.0, **changes})
    pack = AdapterPack(base, [1], settings)
    pack.up.copy_(0.5 * torch.randn(pack.up.shape, generator=torch.Generator().manual_seed(0)))
    notes = {"base": {"source": "x", "digest": base.digest}}
    save_adapter(path, pack.tensors(0), lora_config(settings), notes, base.adapter_prefix)
    return read_adapter(path, base.digest, base.device, base)
