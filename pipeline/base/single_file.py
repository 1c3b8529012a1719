"""The parts of a base in a single .safetensors file, as the header names them: none of its numbers is read.

Such a file has the names of CompVis' and Stability AI's own code. diffusers' converters give them the names of its
models; here they run on torch's meta device, where a tensor is only a shape.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    is_clip_model,
    is_clip_sdxl_model,
    is_open_clip_model,
    is_open_clip_sdxl_model,
)
from safetensors import safe_open
from torch import Tensor, nn

from pipeline.base.files import ORIGINAL

Shapes = dict[str, tuple[int, ...]]

FLOATS = ("F64", "F32", "F16", "BF16")
NO_FLOATS = (-1,)
"""Instead of a shape: the tensor holds no floating-point numbers, which weights are."""

# What text encoders have beside the model's tensors: counted, not learned; or made for comparing with pictures.
_BESIDE = (".position_ids", "logit_scale", "text_projection.weight")


def header_shapes(file: Path) -> Shapes:
    """Name to shape of all tensors of a safetensors file; `NO_FLOATS` where their kind is not usable."""
    with safe_open(file, framework="numpy") as content:
        slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118
        return {
            name: tuple(one.get_shape()) if one.get_dtype() in FLOATS else NO_FLOATS for name, one in slices.items()
        }


def part_shapes(part: str, header: Shapes, model: nn.Module) -> Shapes:
    """Name to shape of the tensors of one part, named as the model of its config names them. What the model has no
    place for keeps the file's name.

    Raises whatever the converters raise where tensors are missing, or so shaped, that they reckon with.
    """
    prefixes = ORIGINAL[part]
    own = {name: _on_meta(shape) for name, shape in header.items() if name.startswith(prefixes)}
    config: Any = model.config
    if part == "unet":
        found = _with_unread(convert_ldm_unet_checkpoint(own, config), own, prefixes)
    elif part == "vae":
        read = tuple(f"{prefixes[0]}{start}" for start in ("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
        found = _with_unread(convert_ldm_vae_checkpoint(own, config), own, read)
    else:
        expected = model.state_dict()
        converted = _converted_text_encoder(own, model)
        found = {name: one for name, one in converted.items() if name in expected or not name.endswith(_BESIDE)}
    return {name: tuple(one.shape) if one.is_floating_point() else NO_FLOATS for name, one in found.items()}


def _on_meta(shape: tuple[int, ...]) -> Tensor:
    if shape == NO_FLOATS:
        return torch.empty(0, dtype=torch.uint8, device="meta")
    return torch.empty(shape, device="meta")


def _converted_text_encoder(own: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """As diffusers' own loading tells the kinds apart: OpenAI's CLIP, and OpenCLIP under the name that follows."""
    if is_clip_model(own) or is_clip_sdxl_model(own):
        return convert_ldm_clip_checkpoint(own)
    if is_open_clip_model(own):
        return convert_open_clip_checkpoint(model, own, prefix="cond_stage_model.model.")
    if is_open_clip_sdxl_model(own):
        return convert_open_clip_checkpoint(model, own, prefix="conditioner.embedders.1.model.")
    raise ValueError("neither CLIP nor OpenCLIP by the names of its tensors")


def _with_unread(
    found: Mapping[str, Tensor | None], own: Mapping[str, Tensor], read: tuple[str, ...]
) -> dict[str, Tensor]:
    """The converted tensors, and under their own names those that a converter left out of what it should `read`."""
    made = {name: tensor for name, tensor in found.items() if tensor is not None}
    used = {id(one) for tensor in made.values() for one in (tensor, tensor._base)}  # a slice knows what it is of
    return made | {name: one for name, one in own.items() if id(one) not in used and name.startswith(read)}
