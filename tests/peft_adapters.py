"""Adapters as peft puts them into a UNet: an implementation that shares nothing with the package's own."""

import json
import warnings
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from peft.utils import set_peft_model_state_dict
from safetensors import safe_open

from pipeline.adapters.lora import ATTENTION, CONFIG_KEY

PREFIX = "unet."


def add_adapter(unet: UNet2DConditionModel, name: str, rank: int, alpha: float, seed: int) -> list[torch.nn.Parameter]:
    """Add a fresh float32 adapter, the only trainable and active one, and return its weights.

    B is zero, so it changes nothing yet; A is drawn from `seed` alone, without touching the global generator.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(ATTENTION), init_lora_weights=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _add(unet, config, name)
    weights = adapter_weights(unet, name)
    for parameter in weights.values():
        parameter.data = parameter.data.float()  # in a lower precision most updates would round away
    return list(weights.values())


def _add(unet: UNet2DConditionModel, config: LoraConfig, name: str) -> None:
    with warnings.catch_warnings():  # a second adapter on one UNet is what morphs are made of
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        unet.add_adapter(config, name)


def adapter_weights(unet: UNet2DConditionModel, name: str) -> dict[str, torch.nn.Parameter]:
    """The adapter's own parameters by name, in the order of the modules."""
    return {key: weight for key, weight in unet.named_parameters() if f".{name}." in key and ".lora_" in key}


def load_adapter(unet: UNet2DConditionModel, path: Path, name: str) -> None:
    """Add the adapter in `path` to the UNet under `name`, in evaluation mode."""
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()[CONFIG_KEY])
        state = {key.removeprefix(PREFIX): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    _add(
        unet,
        LoraConfig(
            r=config[PREFIX + "r"],
            lora_alpha=config[PREFIX + "lora_alpha"],
            use_rslora=config[PREFIX + "use_rslora"],
            target_modules=config[PREFIX + "target_modules"],
        ),
        name,
    )
    for parameter in adapter_weights(
        unet, name
    ).values():  # before they take values: the base may be of lower precision
        parameter.data = parameter.data.float()
        parameter.requires_grad_(False)
    outcome = set_peft_model_state_dict(unet, state, adapter_name=name)
    assert not outcome.unexpected_keys and not [key for key in outcome.missing_keys if f".{name}." in key]
