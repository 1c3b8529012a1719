"""Opening a base from a folder, the Hub or a single file, on the device of choice."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # notices about torchvision, which nothing here needs

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from pipeline.base.checking import (
    base_digest,
    base_family,
    cached,
    config_folder,
    find_base_problems,
    is_hub_id,
    is_single_file,
)
from pipeline.base.device import find_dtype_problems, torch_dtype
from pipeline.base.families import STABLE_DIFFUSION, STABLE_DIFFUSION_XL, STABLE_DIFFUSION_XL_REFINER, Family, family_of
from pipeline.base.files import RESTORE, find_weights
from pipeline.base.fitting import find_fit_problems
from pipeline.base.hub import fetch
from pipeline.base.noise_path import VariancePreserving
from pipeline.base.protocol import Base
from pipeline.base.schedule import FILE
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.base.stable_diffusion_xl import StableDiffusionXL, StableDiffusionXLRefiner
from pipeline.base.text_encoders import named_text_encoders
from pipeline.errors import Problem, UserError
from pipeline.inputs import read_json
from pipeline.sections import BaseSection

_KINDS = {
    STABLE_DIFFUSION.name: StableDiffusion,
    STABLE_DIFFUSION_XL.name: StableDiffusionXL,
    STABLE_DIFFUSION_XL_REFINER.name: StableDiffusionXLRefiner,
}


def open_base(section: BaseSection, device: torch.device, *, for_use: bool = True) -> Base:
    """Load the base, frozen and in evaluation mode, without the section's adapters (see `adapted_base.py`).

    for_use: False for its weights alone, in a precision that the device cannot work in.

    Raises:
        UserError: when it is not there, not whole, of another family, or not the pinned one.
        ValueError: for a section with adapters.
    """
    if section.adapters:
        raise ValueError("a base with adapters is opened by open_adapted_base")
    problems = [*find_base_problems(section), *(find_dtype_problems(section, device) if for_use else ())]
    problems = problems or fit_problems(section)
    if problems:
        raise UserError(*problems)
    disable_progress_bar()  # a bar for reading a file from disk hides the bars that matter
    dtype = torch_dtype(section)
    parts = _load(section, dtype)
    path = VariancePreserving.from_scheduler_config(parts.pop("scheduler_config"))
    for model in (parts[name] for name in ("denoiser", "vae", "text_encoder", "text_encoder_2") if name in parts):
        model.to(device).eval().requires_grad_(False)
    if dtype == torch.float16 and parts["vae"].config.force_upcast:
        parts["vae"].float()  # the XL autoencoder overflows in float16, and pictures come out black
    kind = _KINDS[base_family(section).name]
    digest = adapters_digest(section)
    return kind(**parts, path=path, device=device, dtype=dtype, digest=digest, clip_skip=section.clip_skip)


def adapters_digest(section: BaseSection) -> str:
    """What adapters are bound to: the base's digest, how captions reach it, and the adapters that lie under them."""
    under = "".join(f" adapter {one.digest} {one.weight:g}" for one in section.adapters)
    return base_digest(section) + (f" clip_skip {section.clip_skip}" if section.clip_skip else "") + under


def fit_problems(section: BaseSection, download: bool = True) -> list[Problem]:
    """What keeps the parts of a base, whose files are whole, from working together; a Hub base is downloaded for that.

    download: False for its configs alone, as long as its weights are not there.

    Raises:
        UserError: when the Hub refuses or cannot be reached.
    """
    there = not is_hub_id(section) or cached(section) is not None
    root = root_of(section) if there or download else config_folder(section, "*")
    single = Path(section.source) if is_single_file(section) else None
    return find_fit_problems(root, single, with_weights=there or download) or _skip_problems(section, root)


def _skip_problems(section: BaseSection, root: Path) -> list[Problem]:
    """More layers left out than the text encoders have to spare: of SDXL's, the last is never used."""
    family = family_of(root)
    if not section.clip_skip or family is STABLE_DIFFUSION_XL_REFINER:
        return []  # the refiner never leaves out any
    configs = [read_json(root / part / "config.json") for part in text_parts(family)]
    layers = min(int(config.get("num_hidden_layers", 12)) for config in configs)
    most = layers - (2 if family.size_numbers else 1)
    if section.clip_skip <= most:
        return []
    found = f"{section.clip_skip}, and a text encoder has {layers} layers"
    return [Problem("params.yaml: base.clip_skip", found, f"It can be 0 to {most} for this base.")]


@dataclass(frozen=True)
class LayersWithoutWeights:
    """A base's denoiser and text encoders as their configs describe them, on torch's meta device."""

    denoiser: UNet2DConditionModel
    text_encoders: nn.ModuleDict


def layers_without_weights(section: BaseSection) -> LayersWithoutWeights:
    """What adapters go on, for questions about whether they fit."""
    root = cached(section) or fetch(section, ["model_index.json"]) if is_hub_id(section) else root_of(section)
    encoders = {}
    for part in text_parts(family_of(root)):
        config = read_json(config_folder(section, part) / part / "config.json")
        with torch.device("meta"):
            encoders[part] = text_kind(part)(CLIPTextConfig.from_dict(config))
    return LayersWithoutWeights(denoiser_without_weights(section), named_text_encoders(encoders))


def text_parts(family: Family) -> list[str]:
    """The parts of a base that read captions."""
    return [part for part in family.weights if part.startswith("text_encoder")]


def text_kind(part: str) -> type[CLIPTextModel] | type[CLIPTextModelWithProjection]:
    """The class of such a part."""
    return CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel


def denoiser_without_weights(section: BaseSection) -> nn.Module:
    """The base's denoiser as its config describes it, on torch's meta device: for questions about its layers."""
    config = UNet2DConditionModel.load_config(config_folder(section, "unet"), subfolder="unet")
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


def root_of(section: BaseSection) -> Path:
    """The diffusers folder of a base: with its configs alone for a single file."""
    if is_hub_id(section):
        return cached(section) or _fetch_all(section)
    return Path(section.config or "") if is_single_file(section) else Path(section.source)


def _load(section: BaseSection, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a base.

    Raises:
        UserError: for whatever the libraries meet that `fit_problems` cannot see.
    """
    try:
        return _load_single_file(section, dtype) if is_single_file(section) else _load_folder(section, dtype)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # three libraries, each with kinds of its own
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        found = f"it cannot be loaded ({type(error).__name__}: {reason})"
        raise UserError(Problem(section.source, found, RESTORE)) from error


def _load_folder(section: BaseSection, dtype: torch.dtype) -> dict[str, Any]:
    root = root_of(section)
    family = family_of(root)
    kinds = {"unet": (UNet2DConditionModel, dtype), "vae": (AutoencoderKL, dtype)}
    parts: dict[str, Any] = {
        part: kind.from_pretrained(
            root, subfolder=part, use_safetensors=True, torch_dtype=kept, **_variant(root / part, family)
        )
        for part, (kind, kept) in kinds.items()
    }
    parts["denoiser"] = parts.pop("unet")
    # Captions are short, so their precision costs next to nothing: text encoders are float32 always.
    for part in text_parts(family):
        parts[part] = text_kind(part).from_pretrained(
            root, subfolder=part, use_safetensors=True, dtype=torch.float32, **_variant(root / part, family)
        )
    for part in family.tokenizers:
        parts[part] = CLIPTokenizer.from_pretrained(root, subfolder=part)
    if "text_encoder" not in parts:  # the refiner's only one
        parts["text_encoder"], parts["tokenizer"] = parts.pop("text_encoder_2"), parts.pop("tokenizer_2")
    parts["scheduler_config"] = read_json(root / "scheduler" / FILE)
    if family.size_numbers:
        index = read_json(root / "model_index.json")
        parts["empty_is_zero"] = bool(index.get("force_zeros_for_empty_prompt", True))
    return parts


def _fetch_all(section: BaseSection) -> Path:
    """Download a Hub base: its configs, and of its weights the plain ones; float16 ones where there are no others."""
    family = family_of(fetch(section, ["model_index.json"]))
    configs = ["model_index.json", *(f"{part}/*{end}" for part in family.parts for end in (".json", ".txt"))]
    for variant in ("", ".fp16"):
        names = [
            f"{part}/{stem}{shards}{variant}.safetensors"
            for part, stem in family.weights.items()
            for shards in ("", "-0*")
        ]
        root = fetch(section, [*configs, *names])
        if all(find_weights(root / part, stem) for part, stem in family.weights.items()):
            break
    return root


def _variant(part: Path, family: Family) -> dict[str, str]:
    """Some bases come in float16 files only, whose names say so."""
    found = find_weights(part, family.weights[part.name])
    return {"variant": found[0]} if found and found[0] else {}


def load_single_file(section: BaseSection, dtype: torch.dtype) -> Any:
    """The diffusers pipeline of a single file, its text encoders float32. Raises whatever the libraries raise."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    large = base_family(section) is STABLE_DIFFUSION_XL
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    given: dict[str, Any] = {"config": section.config, "local_files_only": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        # A pipeline has one type for all. What it is given keeps its own.
        parts = {
            part: kind.from_single_file(section.source, subfolder=part, torch_dtype=dtype, **given)
            for part, kind in kinds.items()
        }
        return (StableDiffusionXLPipeline if large else StableDiffusionPipeline).from_single_file(
            section.source, torch_dtype=torch.float32, **parts, **given, **({} if large else {"safety_checker": None})
        )


def _load_single_file(section: BaseSection, dtype: torch.dtype) -> dict[str, Any]:
    pipe = load_single_file(section, dtype)
    parts = {
        "denoiser": pipe.unet,
        "vae": pipe.vae,
        "text_encoder": pipe.text_encoder,
        "tokenizer": pipe.tokenizer,
        "scheduler_config": dict(pipe.scheduler.config),
    }
    if "text_encoder_2" in pipe.components:
        parts |= {"text_encoder_2": pipe.text_encoder_2, "tokenizer_2": pipe.tokenizer_2}
        parts["empty_is_zero"] = bool(pipe.config.get("force_zeros_for_empty_prompt", True))
    return parts
