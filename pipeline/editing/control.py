"""ControlNets: whether one is whole and fits the base, and opening it."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import ControlNetModel
from torch import nn

from pipeline.base.checking import cached, config_folder, is_hub_id, no_commit
from pipeline.base.digests import file_sha256
from pipeline.base.files import RESTORE, find_weights, json_problems, weights_problems
from pipeline.base.fitting import described_model, reason_of, shapes_of, stored_shapes, weights_fit_problems
from pipeline.base.hub import fetch
from pipeline.base.opening import denoiser_without_weights
from pipeline.base.stable_diffusion import RESIDUALS
from pipeline.errors import Problem, UserError
from pipeline.inputs import read_json
from pipeline.sections import BaseSection, ControlSection

STEM = "diffusion_pytorch_model"
SHARED = (
    "block_out_channels", "down_block_types", "layers_per_block", "cross_attention_dim",
    "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim",
)  # fmt: skip
"""Config keys in which a ControlNet is like the denoiser that it was made for."""


def find_control_problems(section: ControlSection, base: BaseSection, where: str) -> list[Problem]:
    """Everything that would keep this ControlNet from working on this base, which is in order itself.

    where: the key of the section in params.yaml.
    """
    try:
        folder = folder_of(section, where)
    except UserError as error:
        return list(error.problems)
    problems = _file_problems(folder) or _fit_problems(folder, base)
    if not problems and not _is_hub(section) and (digest := control_digest(section)) != section.revision:
        found = "a ControlNet must be pinned" if section.revision is None else f"{section.source} has changed"
        fix = f"If its files are right, write `revision: {digest}`."
        problems = [Problem(f"{where}.revision", found, fix)]
    return problems


def folder_of(section: ControlSection, where: str) -> Path:
    """The folder of a ControlNet; one of the Hub is downloaded unless it is in this machine's cache.

    Raises:
        UserError: when there is none.
    """
    if os.path.isdir(section.source):
        return Path(section.source)
    if not _is_hub(section):
        found = f"there is no folder {section.source!r}, and for a Hub id {no_commit(section.revision)}"
        raise UserError(Problem(f"{where}.source", found, "Correct the path, or write a commit of 40 hex digits."))
    if there := cached(_as_base(section), _file_problems):
        return there
    for end in ("", ".fp16"):
        try:
            names = ["config.json", f"{STEM}{end}.safetensors", f"{STEM}-0*{end}.safetensors"]
            folder = fetch(_as_base(section), names)
        except UserError as error:
            raise UserError(*(Problem(f"{where}.source", one.found, one.fix) for one in error.problems)) from None
        if find_weights(folder, STEM):
            break
    return folder


def control_digest(section: ControlSection) -> str:
    """What identifies it: `owner/name@commit` for a Hub id, else a SHA-256 over its files."""
    if _is_hub(section):
        return f"{section.source}@{section.revision}"
    folder, total = Path(section.source), hashlib.sha256()
    found = find_weights(folder, STEM)
    for path in sorted([folder / "config.json", *(found[1] if found else ())]):
        total.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def open_control(section: ControlSection, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Load it, frozen and in evaluation mode. `check` has found it whole.

    Raises:
        UserError: when it has changed since.
    """
    folder = folder_of(section, "edit.control")
    if not _is_hub(section) and control_digest(section) != section.revision:
        raise UserError(Problem(section.source, "the ControlNet has changed", "Run `morphline check`."))
    found = find_weights(folder, STEM)
    variant = {"variant": found[0]} if found and found[0] else {}
    net = ControlNetModel.from_pretrained(folder, use_safetensors=True, torch_dtype=dtype, **variant)
    return net.to(device).eval().requires_grad_(False)


def _is_hub(section: ControlSection) -> bool:
    commit = section.revision is not None and len(section.revision) == 40
    return commit and is_hub_id(_as_base(section))


def _as_base(section: ControlSection) -> BaseSection:
    """For the functions that ask the Hub, which want no more than a source and a commit."""
    return BaseSection(
        source=section.source, revision=section.revision, config=None, dtype="float32", clip_skip=0, adapters=()
    )


def _file_problems(folder: Path) -> list[Problem]:
    """A config of no ControlNet, or weights that are not there or not whole."""
    problems = json_problems(folder / "config.json", RESTORE, _class_name=("ControlNetModel",))
    return problems or weights_problems(folder, STEM)


def _fit_problems(folder: Path, base: BaseSection) -> list[Problem]:
    """A ControlNet of another kind of base, or weights that are not those of its config."""
    tensors = stored_shapes(folder, STEM)
    net = described_model(folder / "config.json", ControlNetModel.from_config, tensors)
    if isinstance(net, Problem):
        return [net]
    denoiser = denoiser_without_weights(base)
    ours, theirs = (cast(Mapping[str, Any], model.config) for model in (denoiser, net))
    vae = read_json(config_folder(base, "vae") / "vae" / "config.json")
    wanted = {key: ours.get(key) for key in SHARED} | {"in_channels": ours.get("out_channels")}
    if other := [key for key, value in wanted.items() if value != theirs.get(key)]:
        what = ", ".join(f"{key} is {theirs.get(key)}, the base's {wanted[key]}" for key in other[:3])
        return [Problem(str(folder), f"it is of another kind of base: {what}", "Use a ControlNet made for this base.")]
    problems = list(weights_fit_problems(folder, shapes_of(net), tensors))
    return problems or _trial_problems(folder, net, denoiser, 2 ** (len(vae["block_out_channels"]) - 1))


@torch.no_grad()
def _trial_problems(folder: Path, net: nn.Module, denoiser: nn.Module, pixels: int) -> list[Problem]:
    """One step through both, in shapes only. pixels: along a side of one latent."""
    config: Any = denoiser.config
    try:
        with torch.device("meta"):
            latents, time = torch.empty(1, config.out_channels, 8, 8), torch.empty(1)
            around = torch.empty(1, config.in_channels - config.out_channels, 8, 8)  # of a base that fills holes
            caption, edges = torch.empty(1, 4, config.cross_attention_dim), torch.empty(1, 3, 8 * pixels, 8 * pixels)
            named: dict[str, Any] = {}
            if config.addition_embed_type == "text_time":
                pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
                named["added_cond_kwargs"] = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}
            added = net(latents, time, caption, edges, return_dict=False, **named)
            inputs = torch.cat([latents, around], dim=1)
            denoiser(inputs, time, caption, **named, **dict(zip(RESIDUALS, added, strict=True)))
    except Exception as error:  # whatever two models meet that do not fit
        found = f"it does not work with the base ({reason_of(error)})"
        return [Problem(str(folder), found, "Use a ControlNet made for this base.")]
    return []
