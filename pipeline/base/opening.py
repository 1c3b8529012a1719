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

from pipeline.base.checking import base_digest, find_base_problems, is_hub_id, is_single_file
from pipeline.base.schedule import NoiseSchedule
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.errors import Problem, UserError
from pipeline.params import BaseSection


def open_base(section: BaseSection, device: torch.device) -> StableDiffusion:
    """Load the base, frozen and in evaluation mode.

    Raises:
        UserError: when it is not there, not whole, of another family, or not the pinned one.
    """
    problems = find_base_problems(section)
    if section.dtype == "float16" and device.type == "cpu":
        mend = "Write `dtype: float32`, or `bfloat16`."
        problems.append(Problem("params.yaml: base.dtype", "float16 needs a GPU", mend))
    if problems:
        raise UserError(*problems)
    disable_progress_bar()  # a bar for reading a file from disk hides the bars that matter
    dtype = getattr(torch, section.dtype)
    parts = _load_single_file(section, dtype) if is_single_file(section) else _load_folder(section, dtype)
    for model in (parts["unet"], parts["vae"], parts["text_encoder"]):
        model.to(device).eval().requires_grad_(False)
    schedule = NoiseSchedule.from_scheduler_config(parts["scheduler_config"])
    if schedule.prediction_type not in ("epsilon", "v_prediction"):
        found = f"prediction_type {schedule.prediction_type!r} is not supported"
        raise UserError(Problem(section.source, found, "Choose a base that predicts epsilon or v."))
    return StableDiffusion(
        parts["unet"], parts["vae"], parts["text_encoder"], parts["tokenizer"], schedule, device, dtype,
        base_digest(section),
    )  # fmt: skip


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA, else Apple's MPS, else the CPU.

    Raises:
        UserError: when the device asked for is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in there if there[kind]))
    if not there[name]:
        found = f"there is no {name} device for torch here"
        raise UserError(Problem("params.yaml: machine.device", found, "Write `auto`, or mend the torch installation."))
    return torch.device(name)


def _load_folder(section: BaseSection, dtype: torch.dtype) -> dict[str, Any]:
    root = Path(section.source)
    if is_hub_id(section):
        from huggingface_hub import snapshot_download

        patterns = [
            "model_index.json",
            *(f"{part}/*{end}" for part in _PARTS for end in (".json", ".txt", ".safetensors")),
        ]
        root = Path(snapshot_download(section.source, revision=section.revision, allow_patterns=patterns))
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


_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def _variant(part: Path) -> dict[str, str]:
    """Some bases come in float16 files only, whose names say so."""
    plain = any(part.glob("*model.safetensors")) or any(part.glob("*model-0*.safetensors"))
    return {} if plain or not any(part.glob("*.fp16.safetensors")) else {"variant": "fp16"}


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
