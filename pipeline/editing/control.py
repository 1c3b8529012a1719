"""ControlNets: whether one is whole and fits the base, and opening it."""

import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from safetensors import safe_open
from torch import nn

from pipeline.base.checking import fetch, is_hub_id
from pipeline.base.digests import file_sha256
from pipeline.base.files import RESTORE, find_weights, json_problems, weights_problems
from pipeline.base.opening import denoiser_without_weights
from pipeline.errors import Problem, UserError
from pipeline.inputs import read_json
from pipeline.sections import BaseSection, ControlSection

STEM = "diffusion_pytorch_model"
SHARED = (
    "in_channels", "block_out_channels", "down_block_types", "layers_per_block", "cross_attention_dim",
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
    problems = json_problems(folder / "config.json", RESTORE, _class_name=("ControlNetModel",))
    problems = problems or weights_problems(folder, STEM) or _fit_problems(folder, base)
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
        found = f"there is no folder {section.source!r}, and for a Hub id {section.revision!r} is not a commit"
        raise UserError(Problem(f"{where}.source", found, "Correct the path, or write a commit of 40 hex digits."))
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
    return BaseSection(source=section.source, revision=section.revision, config=None, dtype="float32", clip_skip=0)


def _fit_problems(folder: Path, base: BaseSection) -> list[Problem]:
    """A ControlNet of another kind of base, or weights that are not those of its config."""
    config = read_json(folder / "config.json")
    own: Any = denoiser_without_weights(base).config
    found = partial(_shown, config)
    other = [key for key in SHARED if key in own and found(key) != _shown(own, key)]
    if other:
        what = ", ".join(f"{key} is {found(key)}, the base's {_shown(own, key)}" for key in other[:3])
        return [Problem(str(folder), f"it is of another kind of base: {what}", "Use a ControlNet made for this base.")]
    try:
        with torch.device("meta"):
            model = ControlNetModel.from_config(config)
        wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    except Exception as error:  # whatever the library meets in a config that is none
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        return [Problem(str(folder / "config.json"), f"no ControlNet can be built from it ({reason})", RESTORE)]
    there: dict[str, tuple[int, ...]] = {}
    for file in (find_weights(folder, STEM) or ("", []))[1]:
        with safe_open(file, framework="numpy") as content:
            there |= {key: tuple(content.get_slice(key).get_shape()) for key in content.keys()}  # noqa: SIM118
    wrong = sorted(key for key in wanted.keys() | there.keys() if wanted.get(key) != there.get(key))
    if wrong:
        found_shapes = f"{len(wrong)} tensors do not fit its config, {wrong[0]} first"
        return [Problem(str(folder), found_shapes, RESTORE)]
    return []


def _shown(config: Mapping[str, Any], key: str) -> Any:
    value = config.get(key)
    return list(value) if isinstance(value, tuple | list) else value
