"""LoRA adapters (Hu et al. 2021) on a base's attention, and the files that hold them."""

import hashlib
import json
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from peft.utils import set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save

from pipeline.errors import Problem, UserError
from pipeline.params import TrainSection

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
PRESETS = {"attention": ATTENTION, "attention+feed-forward": (*ATTENTION, "ff.net.0.proj", "ff.net.2")}
"""Which layers get factors, by the ends of their names."""

PREFIX = "unet."
CONFIG_KEY = "lora_adapter_metadata"  # where diffusers looks for rank and alpha
_OWN_KEY = "morphline"


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


def lora_config(settings: TrainSection) -> LoraConfig:
    """What peft and diffusers must know to use an adapter."""
    names = PRESETS[settings.targets] if isinstance(settings.targets, str) else settings.targets
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        use_rslora=settings.rank_stabilised,
        target_modules=list(names),
        init_lora_weights="gaussian" if settings.init == "gaussian" else True,
    )


def save_adapter(path: Path, tensors: Mapping[str, torch.Tensor], config: LoraConfig, notes: Mapping[str, Any]) -> None:
    """Write one .safetensors file that `StableDiffusionPipeline.load_lora_weights` takes as it is.

    tensors: the factors as peft names them, `<module>.lora_A.weight` and so on. notes: anything JSON that says where
    the adapter comes from; nothing volatile, so that equal adapters are equal files.
    """
    state = {PREFIX + key: value.detach().float().cpu().contiguous() for key, value in sorted(tensors.items())}
    told = {PREFIX + key: _plain(value) for key, value in config.to_dict().items()}
    metadata = {
        "format": "pt",
        CONFIG_KEY: json.dumps(told, sort_keys=True),
        _OWN_KEY: json.dumps(notes, sort_keys=True, ensure_ascii=False),
    }
    write_tensors(path, state, metadata)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """A .safetensors file of the same bytes for the same content, in every process."""
    path.write_bytes(_canonical(save(dict(tensors), dict(metadata))))


def _plain(value: Any) -> Any:
    """JSON of one meaning: peft keeps sets, whose order changes from process to process, and enums."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return getattr(value, "value", value)


def _canonical(content: bytes) -> bytes:
    """Sort the header: safetensors writes metadata in an order that differs from run to run."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def read_notes(path: Path) -> dict[str, Any]:
    """What `save_adapter` noted.

    Raises:
        UserError: when the file is missing, damaged or not one of ours.
    """
    mend = "Run `dvc repro` to train it again."
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})[_OWN_KEY])
    except FileNotFoundError:
        raise UserError(Problem(str(path), "the adapter is missing", mend)) from None
    except Exception as error:  # safetensors raises its own exception type for each kind of damage
        raise UserError(Problem(str(path), f"not an adapter of morphline ({error})", mend)) from error


def load_adapter(unet: UNet2DConditionModel, path: Path, name: str, base_digest: str) -> None:
    """Add the adapter in `path` to the UNet under `name`, in evaluation mode.

    Raises:
        UserError: when the file is not whole, or was trained on another base.
    """
    notes = read_notes(path)
    if notes["base"]["digest"] != base_digest:
        found = f"trained on {notes['base']['source']} ({notes['base']['digest'][:20]}), not on this base"
        raise UserError(Problem(str(path), found, "Run `dvc repro` to train it again."))
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
    lost = [*outcome.unexpected_keys, *(key for key in outcome.missing_keys if f".{name}." in key)]
    if lost:
        found = f"its weights and this base do not fit together ({lost[0]})"
        raise UserError(Problem(str(path), found, "Run `dvc repro` to train it again."))


def keyed_seed(*parts: object) -> int:
    """A seed of 63 bits that depends on all the parts and on nothing else."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
