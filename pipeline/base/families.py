"""The families of bases that can be opened: of which parts their diffusers folders consist."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.inputs import read_json

# None: the key may be missing, as in Stable Diffusion 1.5's own scheduler.
Expected = dict[str, tuple[str | None, ...]]


DENOISER = "unet"
"""The part that adapters change."""
ADAPTER_PREFIX = f"{DENOISER}."
"""Before its modules' names in adapters, as diffusers and most LoRA files have it."""


@dataclass(frozen=True)
class Family:
    """name: for people. pipelines: `_class_name` in model_index.json, the second for filling holes. configs: part to
    its config file and what that must say. weights: part to the stem of its weights' file names. size_numbers: of a
    picture, which an XL's denoiser takes beside the caption. index: what model_index.json must say besides."""

    name: str
    pipelines: tuple[str, ...]
    configs: dict[str, tuple[str, Expected]]
    weights: dict[str, str]
    size_numbers: int = 0
    index: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """Every subfolder that belongs to a base."""
        return tuple(self.configs)

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """Those of them that hold a tokenizer."""
        return tuple(part for part in self.configs if part.startswith("tokenizer"))


_TEXT_ENCODER: tuple[str, Expected] = ("config.json", {"model_type": ("clip_text_model",)})
_CONFIGS: dict[str, tuple[str, Expected]] = {
    "unet": ("config.json", {"_class_name": ("UNet2DConditionModel",)}),
    "vae": ("config.json", {"_class_name": ("AutoencoderKL",)}),
    "text_encoder": _TEXT_ENCODER,
    "tokenizer": ("tokenizer_config.json", {}),
    "scheduler": ("scheduler_config.json", {"prediction_type": ("epsilon", "v_prediction", None)}),
}
_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}

STABLE_DIFFUSION = Family(
    "Stable Diffusion", ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"), _CONFIGS, _WEIGHTS
)
STABLE_DIFFUSION_XL = Family(
    "Stable Diffusion XL",
    ("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline"),
    {**_CONFIGS, "text_encoder_2": _TEXT_ENCODER, "tokenizer_2": ("tokenizer_config.json", {})},
    {**_WEIGHTS, "text_encoder_2": "model"},
    size_numbers=6,
)
STABLE_DIFFUSION_XL_REFINER = Family(
    "Stable Diffusion XL's refiner",
    ("StableDiffusionXLImg2ImgPipeline",),
    {part: config for part, config in STABLE_DIFFUSION_XL.configs.items() if part not in ("text_encoder", "tokenizer")},
    {part: stem for part, stem in STABLE_DIFFUSION_XL.weights.items() if part != "text_encoder"},
    size_numbers=5,
    index={"text_encoder": [None, None], "requires_aesthetics_score": True},
)
FAMILIES = (STABLE_DIFFUSION, STABLE_DIFFUSION_XL, STABLE_DIFFUSION_XL_REFINER)
FAMILIES_AT = {
    "base": (STABLE_DIFFUSION, STABLE_DIFFUSION_XL),
    "refiner": (STABLE_DIFFUSION_XL, STABLE_DIFFUSION_XL_REFINER),
}
"""Key of params.yaml to the families that can stand there."""


def family_of(folder: Path) -> Family:
    """The family of a diffusers folder, by its model_index.json, which `check` has found to be one of ours."""
    name = read_json(folder / "model_index.json")["_class_name"]
    return next(family for family in FAMILIES if name in family.pipelines)
