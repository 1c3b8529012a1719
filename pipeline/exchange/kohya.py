"""Adapters in the key format of kohya's sd-scripts, which ComfyUI and A1111 read."""

import json
from pathlib import Path

import torch

from pipeline.adapters.lora import read_config_and_tensors, read_notes, write_tensors
from pipeline.adapters.mixing import TEXT_ENCODER, is_of_text

LETTERS = {"lora_A": "lora_down", "lora_B": "lora_up"}


def write_kohya(adapter: Path, path: Path) -> None:
    """Write one of our adapter files to `path` as `lora_unet_<module>.lora_down.weight`, `.lora_up.weight`, `.alpha`.

    Text encoders' modules begin with `lora_te_`, or with `lora_te1_` and `lora_te2_` where there are two.
    That format knows only alpha / rank as a scale; alpha is written so that the product is the same.

    Raises:
        UserError: when the file is missing, damaged or not one of ours.
    """
    notes = read_notes(adapter)
    config, tensors = read_config_and_tensors(adapter)
    rank = config["r"]
    alpha = config["lora_alpha"] * (rank**0.5 if config["use_rslora"] else 1.0)
    renamed: dict[str, torch.Tensor] = {}
    two = any(key.startswith(f"{TEXT_ENCODER}_2.") for key in tensors)
    starts = {TEXT_ENCODER: "lora_te1_" if two else "lora_te_", f"{TEXT_ENCODER}_2": "lora_te2_"}
    for key, tensor in tensors.items():
        module, letter, _ = key.rsplit(".", 2)
        part, _, inner = module.partition(".")
        name = (starts[part] + inner if is_of_text(module) else "lora_unet_" + module).replace(".", "_")
        renamed[f"{name}.{LETTERS[letter]}.weight"] = tensor
        renamed[f"{name}.alpha"] = torch.tensor(float(alpha))
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_training_comment": json.dumps(notes, sort_keys=True, ensure_ascii=False),
    }
    write_tensors(path, renamed, metadata)
