"""Bases as single files, in the layout of CompVis' and Stability AI's code, written down from their modules: the slow
reference for what diffusers' converters read."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

_UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_VAE = {
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2", "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut", "downsamplers.0": "downsample", "upsamplers.0": "upsample", "resnets": "block",
}  # fmt: skip
_OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding", "embeddings.token_embedding": "token_embedding",
    "encoder.layers": "transformer.resblocks", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn": "attn",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "final_layer_norm": "ln_final",
}  # fmt: skip


def original_tensors(pipe: Any) -> Tensors:
    """Name to tensor of a Stable Diffusion or XL pipeline, as a single file has them."""
    large = hasattr(pipe, "text_encoder_2")
    first = "conditioner.embedders.0.transformer" if large else "cond_stage_model.transformer"
    clip = {name.removeprefix("text_model."): one for name, one in pipe.text_encoder.state_dict().items()}
    made = {
        **_under("model.diffusion_model", _unet(pipe.unet)),
        **_under("first_stage_model", _vae(pipe.vae)),
        **_under(f"{first}.text_model", clip),
    }
    if large:
        made |= _under("conditioner.embedders.1.model", open_clip_tensors(pipe.text_encoder_2))
    return {name: one.detach().clone().contiguous() for name, one in made.items()}


def write_single_file(pipe: Any, file: Path) -> Path:
    save_file(original_tensors(pipe), file)
    return file


def open_clip_tensors(encoder: Any) -> Tensors:
    """A text encoder with a projection, as OpenCLIP names its tensors."""
    state = {name.removeprefix("text_model."): one for name, one in encoder.state_dict().items()}
    made = {"text_projection": state.pop("text_projection.weight").T}
    for name, tensor in state.items():
        if found := re.fullmatch(r"(.*self_attn)\.q_proj\.(weight|bias)", name):
            three = [state[f"{found[1]}.{one}_proj.{found[2]}"] for one in "qkv"]
            made[f"{_renamed(found[1], _OPEN_CLIP)}.in_proj_{found[2]}"] = torch.cat(three)
        elif not re.search(r"\.[kv]_proj\.", name):
            made[_renamed(name, _OPEN_CLIP)] = tensor
    return made


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}.{name}": one for name, one in tensors.items()}


def _renamed(name: str, words: dict[str, str]) -> str:
    for new, old in words.items():
        name = re.sub(rf"(^|\.){re.escape(new)}(?=\.|$)", rf"\g<1>{old}", name)
    return name


def _unet(unet: Any) -> Tensors:
    each = unet.config.layers_per_block + 1  # layers and the downsampler; one more layer on the way up
    made = {}
    for name, tensor in unet.state_dict().items():
        if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
            way, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
            number = block * each + layer + (way == "down")
            if kind == "resnets":
                place, rest = f"{number}.0", _renamed(rest, _RESNET)
            elif kind == "attentions":
                place = f"{number}.1"
            elif kind == "downsamplers":
                place, rest = f"{(block + 1) * each}.0", rest.replace("conv", "op")
            else:
                attends = any(key.startswith(f"up_blocks.{block}.attentions") for key in unet.state_dict())
                place = f"{(block + 1) * each - 1}.{2 if attends else 1}"
            made[f"{'input' if way == 'down' else 'output'}_blocks.{place}.{rest}"] = tensor
        else:
            inside = _renamed(name, _RESNET) if "resnets" in name else name
            made[_renamed(inside, _UNET)] = tensor
    return made


def _vae(vae: Any) -> Tensors:
    last, made = len(vae.config.up_block_types) - 1, {}
    for name, tensor in vae.state_dict().items():
        numbered = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{last - int(found[1])}", name)
        old = _renamed(numbered.replace("down_blocks", "down"), _VAE)
        one_by_one = ".attn_1." in old and tensor.dim() == 2
        made[old] = tensor[:, :, None, None] if one_by_one else tensor
    return made
