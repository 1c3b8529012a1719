"""Opening a base from a folder, the Hub or a single file, on the device of choice."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # notices about torchvision, which nothing here needs

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from pipeline.base.checking import (
    COMPONENTS,
    WEIGHTS,
    base_digest,
    config_folder,
    fetch,
    find_base_problems,
    is_hub_id,
    is_single_file,
)
from pipeline.base.device import find_dtype_problems, torch_dtype
from pipeline.base.files import whole_weights
from pipeline.base.schedule import NoiseSchedule
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.errors import UserError
from pipeline.params import BaseSection


def open_base(section: BaseSection, device: torch.device) -> StableDiffusion:
    """Load the base, frozen and in evaluation mode.

    Raises:
        UserError: when it is not there, not whole, of another family, or not the pinned one.
    """
    problems = [*find_base_problems(section), *find_dtype_problems(section, device)]
    if problems:
        raise UserError(*problems)
    disable_progress_bar()  # a bar for reading a file from disk hides the bars that matter
    dtype = torch_dtype(section)
    parts = _load_single_file(section, dtype) if is_single_file(section) else _load_folder(section, dtype)
    for model in (parts["unet"], parts["vae"], parts["text_encoder"]):
        model.to(device).eval().requires_grad_(False)
    schedule = NoiseSchedule.from_scheduler_config(parts["scheduler_config"])
    return StableDiffusion(
        parts["unet"], parts["vae"], parts["text_encoder"], parts["tokenizer"], schedule, device, dtype,
        base_digest(section),
    )  # fmt: skip


def unet_without_weights(section: BaseSection) -> UNet2DConditionModel:
    """The base's UNet as its config describes it, on torch's meta device: for questions about its layers."""
    config = UNet2DConditionModel.load_config(config_folder(section, "unet"), subfolder="unet")
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


def _load_folder(section: BaseSection, dtype: torch.dtype) -> dict[str, Any]:
    root = _fetch_all(section) if is_hub_id(section) else Path(section.source)
    unet, vae = (
        kind.from_pretrained(root, subfolder=part, use_safetensors=True, torch_dtype=dtype, **_variant(root / part))
        for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
    )
    # The caption is encoded once, so its precision costs nothing: the text encoder is float32 always.
    text_encoder = CLIPTextModel.from_pretrained(
        root, subfolder="text_encoder", use_safetensors=True, dtype=torch.float32, **_variant(root / "text_encoder")
    )
    return {
        "unet": unet,
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": CLIPTokenizer.from_pretrained(root, subfolder="tokenizer"),
        "scheduler_config": json.loads((root / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")),
    }


def _fetch_all(section: BaseSection) -> Path:
    """Download a Hub base: its configs, and of its weights the plain ones; float16 ones where there are no others."""
    configs = ["model_index.json", *(f"{part}/*{end}" for part in COMPONENTS for end in (".json", ".txt"))]
    for variant in ("", ".fp16"):
        names = [
            f"{part}/{stem}{shards}{variant}.safetensors" for part, stem in WEIGHTS.items() for shards in ("", "-0*")
        ]
        root = fetch(section, [*configs, *names])
        if all(whole_weights(root / part, stem) for part, stem in WEIGHTS.items()):
            break
    return root


def _variant(part: Path) -> dict[str, str]:
    """Some bases come in float16 files only, whose names say so."""
    found = whole_weights(part, WEIGHTS[part.name])
    return {"variant": found[0]} if found and found[0] else {}


def _load_single_file(section: BaseSection, dtype: torch.dtype) -> dict[str, Any]:
    from diffusers import StableDiffusionPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        pipe = StableDiffusionPipeline.from_single_file(
            section.source, config=section.config, local_files_only=True, torch_dtype=dtype, safety_checker=None
        )
    return {
        "unet": pipe.unet,
        "vae": pipe.vae,
        "text_encoder": pipe.text_encoder.float(),
        "tokenizer": pipe.tokenizer,
        "scheduler_config": dict(pipe.scheduler.config),
    }
