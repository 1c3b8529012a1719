"""LoRA files of other programs: diffusers' (old and new key names) and kohya's, with alphas of their own."""

import json
import re
from pathlib import Path
from typing import Any

from peft.utils.other import get_pattern_key
from safetensors import safe_open

from pipeline.adapters.lora import CONFIG_KEY, OWN_KEY, check_pair, layers_by_name
from pipeline.adapters.mixing import Adapter, is_of_text
from pipeline.base.protocol import Adaptable
from pipeline.outputs import reading

_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_OF_CHANGED_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""peft's `init_lora_weights` that take what the factors begin with out of the base's weights."""


def is_foreign(path: Path) -> bool:
    """Whether a file that is there is not one of ours.

    Raises:
        UserError: when it is no whole safetensors file.
    """
    with reading(path), safe_open(path, framework="pt") as file:
        return OWN_KEY not in (file.metadata() or {})


def read_foreign(path: Path, base: Adaptable, prefix: str, fused: bool = False) -> Adapter:
    """The adapter in a file, at scale 1.

    base: also without weights. prefix: the base's `adapter_prefix`. Of convolutions those of one pixel are read, and
    all of them where they are to be `fused`; alpha / rank is in the factors, layer by layer.

    Raises:
        UserError: when the file is not whole, is no LoRA, or does not fit the base.
    """
    # Here, for it brings all of diffusers' pipelines and their notices, and few edits use such a file.
    from diffusers import StableDiffusionPipeline

    with reading(path):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            content = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        if dora := next((key for key in content if "dora_scale" in key), None):
            raise ValueError(f"{dora}: a DoRA, whose scales depend on the weights it was trained on")
        # diffusers knows the names, those of SDXL's original blocks included.
        named, alphas = StableDiffusionPipeline.lora_state_dict(content, unet_config=base.denoiser.config)
        tensors = {
            usual_name(key.removeprefix(prefix)): tensor
            for key, tensor in named.items()
            if key.startswith(prefix) or is_of_text(key)
        }
        if all(map(is_of_text, tensors)):
            raise ValueError("it has no factors for the denoiser")
        scales = _scales(alphas or {}, prefix)
        config = json.loads(metadata.get(CONFIG_KEY, "{}"))
        for key, value in config.items():
            if key.endswith("init_lora_weights") and str(value).lower().startswith(_OF_CHANGED_WEIGHTS):
                raise ValueError(f"{key} is {value}: made for weights that differ from the base's own")
        layers, pairs = layers_by_name(base), {}
        for name in sorted(key.removesuffix(_DOWN) for key in tensors if key.endswith(_DOWN)):
            down, up = tensors.pop(name + _DOWN), tensors.pop(name + _UP)
            check_pair(name, down, up, layers, fused)
            settings = _settings(config, name, prefix)
            pairs[name] = (down, up * (_alpha(name, len(down), scales, settings) / _divisor(len(down), settings)))
        if tensors:
            raise ValueError(f"{len(tensors)} tensors are no LoRA factors, {sorted(tensors)[0]} first")
        return Adapter(pairs, 1.0)


def _settings(config: dict[str, Any], name: str, prefix: str) -> dict[str, Any]:
    """What a file says of the part that a module belongs to."""
    part = f"{name.partition('.')[0]}." if is_of_text(name) else prefix
    return {key.removeprefix(part): value for key, value in config.items() if key.startswith(part)}


def _scales(alphas: dict[str, Any], prefix: str) -> dict[str, float]:
    """Alpha by module, as diffusers gives it: under the names of the factors."""
    named = {usual_name(key.removeprefix(prefix).removesuffix(".alpha")): value for key, value in alphas.items()}
    return {key.removesuffix(_DOWN).removesuffix(_UP): float(value) for key, value in named.items()}


def usual_name(key: str) -> str:
    """A factor's name as peft has it, from diffusers' older ones: `<module>.lora.down.weight` and, oldest, those of
    attention processors, `<attention>.processor.to_q_lora.down.weight`. Those of text encoders were like these, or
    `<module>.lora_linear_layer.down.weight`; today they come with and without `text_model`."""
    if is_of_text(key):
        key = re.sub(r"^(\w+)\.encoder\.", r"\1.text_model.encoder.", key)
        key = re.sub(r"\.to_(q|k|v|out)_lora\.", r".\1_proj.lora.", key).replace(".lora_linear_layer.", ".lora.")
    key = re.sub(r"\.processor\.(to_[qkv]|to_out)_lora\.", r".\1.lora.", key)
    key = re.sub(r"\.to_out\.lora\.", ".to_out.0.lora.", key)
    return re.sub(r"\.lora\.(down|up)\.", lambda found: f".lora_{'A' if found[1] == 'down' else 'B'}.", key)


def _alpha(name: str, rank: int, scales: dict[str, float], settings: dict[str, Any]) -> float:
    """A layer's own alpha, else the file's; a file that says nothing means its factors as they are."""
    if name in scales:
        return scales[name]
    patterns = settings.get("alpha_pattern") or {}
    # Regular expressions for how names end, of text encoders within the encoder, with `text_model` and without.
    inner = name.partition(".")[2] if is_of_text(name) else name
    for known in (inner, inner.removeprefix("text_model.")):
        try:
            key = get_pattern_key(patterns, known)
        except re.error as error:
            raise ValueError(f"alpha_pattern is no pattern ({error})") from None
        if key in patterns:
            return float(patterns[key])
    return float(settings.get("lora_alpha", rank))


def _divisor(rank: int, settings: dict[str, Any]) -> float:
    return rank**0.5 if settings.get("use_rslora") else float(rank)
