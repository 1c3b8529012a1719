"""LoRA adapters (Hu et al. 2021) on a base's attention, and the files that hold them."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from pipeline.adapters.mixing import Adapter, is_fusable, is_linear, is_of_text
from pipeline.base.protocol import Adaptable
from pipeline.errors import Problem, UserError
from pipeline.outputs import reading
from pipeline.sections import TrainSection

TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The layers of text encoders that get factors where these learn, too, as in diffusers' scripts."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
PRESETS = {"attention": ATTENTION, "attention+feed-forward": (*ATTENTION, "ff.net.0.proj", "ff.net.2")}
"""Which layers get factors, by the ends of their names."""

CONFIG_KEY = "lora_adapter_metadata"  # where diffusers looks for rank and alpha
OWN_KEY = "morphline"


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


def save_adapter(
    path: Path, tensors: Mapping[str, torch.Tensor], config: LoraConfig, notes: Mapping[str, Any], prefix: str
) -> None:
    """Write one .safetensors file that a diffusers pipeline's `load_lora_weights` takes as it is.

    tensors: the factors as peft names them, `<module>.lora_A.weight` and so on. notes: anything JSON that says where
    the adapter comes from; nothing volatile, so that equal adapters are equal files. prefix: the base's
    `adapter_prefix`, for those of the denoiser; text encoders' names begin with their part already. config: of the
    denoiser's; the text encoders' have the same, but for their layers.
    """
    state = {
        key if is_of_text(key) else prefix + key: value.detach().float().cpu().contiguous()
        for key, value in sorted(tensors.items())
    }
    layers: dict[str, set[str]] = {}
    for key in filter(is_of_text, tensors):
        layers.setdefault(key.partition(".")[0] + ".", set()).add(key.rsplit(".", 3)[1])
    configs = {prefix: config.to_dict()}
    configs |= {part: {**config.to_dict(), "target_modules": ends} for part, ends in layers.items()}
    settings = {part + key: _plain(value) for part, whole in configs.items() for key, value in whole.items()}
    metadata = {
        "format": "pt",
        CONFIG_KEY: json.dumps(settings, sort_keys=True),
        OWN_KEY: json.dumps(notes, sort_keys=True, ensure_ascii=False),
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
    fix = "Run `dvc repro` to train it again."
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {})[OWN_KEY])
        if not all(isinstance(notes["base"][key], str) for key in ("digest", "source")):
            raise TypeError("it does not say which base it belongs to")
        return notes
    except FileNotFoundError:
        raise UserError(Problem(str(path), "the adapter is missing", fix)) from None
    except Exception as error:  # safetensors raises its own exception type for each kind of damage
        raise UserError(Problem(str(path), f"not an adapter of morphline ({error})", fix)) from error


def read_adapter(path: Path, base_digest: str, device: torch.device, base: Adaptable | None = None) -> Adapter:
    """The adapter in a file, for `mixed_adapters`. base: the one whose layers it must fit; None: not looked at.

    Raises:
        UserError: when the file is not whole, does not fit, or was trained on another base.
    """
    notes = read_notes(path)
    if notes["base"]["digest"] != base_digest:
        found = f"trained on {notes['base']['source']} ({notes['base']['digest'][:20]}), not on this base"
        raise UserError(Problem(str(path), found, "Run `dvc repro` to train it again."))
    config, tensors = read_config_and_tensors(path)
    with reading(path):
        factors: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            module, letter, _ = key.rsplit(".", 2)
            factors.setdefault(module, {})[letter] = tensor.to(device)
        pairs = {module: (pair["lora_A"], pair["lora_B"]) for module, pair in factors.items()}
        layers = None if base is None else layers_by_name(base)
        for module, pair in pairs.items():
            check_pair(module, *pair, layers)
        if not pairs:
            raise ValueError("it holds no tensors")
        return Adapter(pairs, _scale(config))


def layers_by_name(base: Adaptable) -> dict[str, nn.Module]:
    """Every module of a base that adapters could name, as they name it."""
    return {**dict(base.denoiser.named_modules()), **dict(base.text_encoders.named_modules())}


def _scale(config: Mapping[str, Any]) -> float:
    """What B A is multiplied by, of peft's settings."""
    if not (config["r"] > 0 and config["lora_alpha"] > 0 and isinstance(config["use_rslora"], bool)):
        raise ValueError("its rank and scale are no positive numbers")
    return float(config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"]))


def check_pair(
    module: str,
    down: torch.Tensor,
    up: torch.Tensor,
    layers: Mapping[str, nn.Module] | None,
    fused: bool = False,
) -> None:
    """Raises ValueError for factors that have no product, or none for this layer. layers: the base's, by name. fused:
    whether they only become part of weights, where A (r, in, h, w) may have the kernel of a convolution."""
    pixel = (1, 1) if down.ndim == 4 else ()
    shaped = down.ndim in (2, 4) and down.ndim == up.ndim and up.shape[2:] == pixel
    shaped = shaped and (fused or down.shape[2:] == pixel)
    if not shaped or not len(down) or len(down) != up.shape[1]:
        raise ValueError(f"{module}: factors of {tuple(down.shape)} and {tuple(up.shape)}")
    if not bool(down.isfinite().all() and up.isfinite().all()):
        raise ValueError(f"{module}: a factor that is not finite")
    if layers is None:
        return
    layer = layers.get(module)
    fits = is_fusable(layer) if fused else is_linear(layer)
    if not fits or layer is None or layer.weight.shape != (len(up), *down.shape[1:]):
        raise ValueError(f"{module}: no linear layer of this base, or one of another size")


def read_config_and_tensors(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """peft's config and tensors of a file that `save_adapter` wrote, both without the base's prefix; text encoders'
    tensors keep theirs.

    Raises:
        UserError: when the file is not whole.
    """
    with reading(path):
        with safe_open(path, framework="pt") as file:
            whole = json.loads(file.metadata()[CONFIG_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        of_parts = [key.removesuffix("peft_type") for key in whole if key.endswith(".peft_type")]
        prefix = next((part for part in of_parts if not is_of_text(part)), "")
        config = {key.removeprefix(prefix): value for key, value in whole.items() if not is_of_text(key)}
        for part in sorted({key.partition(".")[0] for key in tensors if is_of_text(key)}):
            own = {name: whole[f"{part}.{name}"] for name in ("r", "lora_alpha", "use_rslora")}
            if _scale(own) != _scale(config):
                raise ValueError(f"{part}: its scale is {_scale(own):g}, and the denoiser's {_scale(config):g}")
        _scale(config)
        return config, {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
