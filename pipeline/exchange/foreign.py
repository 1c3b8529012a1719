"""LoRA files of other programs: diffusers' (old and new key names) and kohya's, with alphas of their own."""

import json
import re
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from torch import nn

from pipeline.adapters.lora import CONFIG_KEY, OWN_KEY, check_pair
from pipeline.adapters.mixing import Adapter
from pipeline.outputs import reading

_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def is_foreign(path: Path) -> bool:
    """Whether a file that is there is not one of ours.

    Raises:
        UserError: when it is no whole safetensors file.
    """
    with reading(path), safe_open(path, framework="pt") as file:
        return OWN_KEY not in (file.metadata() or {})


def read_foreign(path: Path, denoiser: nn.Module, prefix: str) -> tuple[Adapter, int]:
    """The adapter in a file, at scale 1, and how many tensors for text encoders were left out.

    denoiser: the base's, also without weights. prefix: the base's `adapter_prefix`. Of convolutions those of one pixel
    are read; alpha / rank is in the factors, layer by layer.

    Raises:
        UserError: when the file is not whole, is no LoRA, or does not fit the base.
    """
    with reading(path):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            content = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        if dora := next((key for key in content if "dora_scale" in key), None):
            raise ValueError(f"{dora}: a DoRA, whose scales depend on the weights it was trained on")
        # diffusers knows the names, those of SDXL's original blocks included.
        named, alphas = StableDiffusionPipeline.lora_state_dict(content, unet_config=denoiser.config)
        own = {key.removeprefix(prefix): tensor for key, tensor in named.items() if key.startswith(prefix)}
        scales = _scales(alphas or {}, prefix)
        tensors = {usual_name(key): tensor for key, tensor in own.items()}
        config = json.loads(metadata.get(CONFIG_KEY, "{}"))
        settings = {key.removeprefix(prefix): value for key, value in config.items()}
        pairs = {}
        for name in sorted(key.removesuffix(_DOWN) for key in tensors if key.endswith(_DOWN)):
            down, up = tensors.pop(name + _DOWN), tensors.pop(name + _UP)
            check_pair(name, down, up, denoiser)
            pairs[name] = (down, up * (_alpha(name, len(down), scales, settings) / _divisor(len(down), settings)))
        if tensors:
            raise ValueError(f"{len(tensors)} tensors are no LoRA factors, {sorted(tensors)[0]} first")
        if not pairs:
            raise ValueError("it has no factors for the denoiser")
        return Adapter(pairs, 1.0), len(named) - len(own)


def _scales(alphas: dict[str, Any], prefix: str) -> dict[str, float]:
    """Alpha by module, as diffusers gives it: under the names of the factors."""
    named = {usual_name(key.removeprefix(prefix).removesuffix(".alpha")): value for key, value in alphas.items()}
    return {key.removesuffix(_DOWN).removesuffix(_UP): float(value) for key, value in named.items()}


def usual_name(key: str) -> str:
    """A factor's name as peft has it, from diffusers' older ones: `<module>.lora.down.weight` and, oldest, those of
    attention processors, `<attention>.processor.to_q_lora.down.weight`."""
    key = re.sub(r"\.processor\.(to_[qkv]|to_out)_lora\.", r".\1.lora.", key)
    key = re.sub(r"\.to_out\.lora\.", ".to_out.0.lora.", key)
    return re.sub(r"\.lora\.(down|up)\.", lambda found: f".lora_{'A' if found[1] == 'down' else 'B'}.", key)


def _alpha(name: str, rank: int, scales: dict[str, float], settings: dict[str, Any]) -> float:
    """A layer's own alpha, else the file's; a file that says nothing means its factors as they are."""
    patterns = settings.get("alpha_pattern") or {}
    return float(scales.get(name, patterns.get(name, settings.get("lora_alpha", rank))))


def _divisor(rank: int, settings: dict[str, Any]) -> float:
    return rank**0.5 if settings.get("use_rslora") else float(rank)
