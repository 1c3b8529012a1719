"""Stable Diffusion 1.5, 2.1 and XL in their true shapes, with random weights.

The shapes are those of the released models' configs. Pictures are noise; time, memory and the code that runs are those
of the real ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipeline.base.noise_path import NoisePath
from pipeline.base.protocol import Base
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.base.stable_diffusion_xl import StableDiffusionXL
from pipeline.landscapes.world import VOCABULARY
from pipeline.pocket.tokenizer import build_tokenizer
from tests.tiny import usual_scheduler

CROSS, PLAIN = "CrossAttn{}Block2D", "{}Block2D"
TOKENS = 77


@dataclass(frozen=True)
class Shape:
    """name: for people. side: pixels of the pictures that it was trained on. unet: what its config says beyond the
    defaults. text, text_2: of its text encoders."""

    name: str
    side: int
    unet: Mapping[str, Any]
    text: Mapping[str, Any]
    text_2: Mapping[str, Any] | None = None
    prediction_type: str = "epsilon"
    scaling_factor: float = 0.18215

    @property
    def latents(self) -> tuple[int, int, int]:
        """(C, h, w) of a picture's latents."""
        return 4, self.side // 8, self.side // 8


CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
SHAPES = {
    "sd15": Shape("Stable Diffusion 1.5", 512, {"cross_attention_dim": 768, "attention_head_dim": 8}, CLIP_L),
    "sd21": Shape(
        "Stable Diffusion 2.1",
        768,
        {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        {**CLIP_H, "hidden_act": "gelu"},
        prediction_type="v_prediction",
    ),
    "sdxl": Shape(
        "Stable Diffusion XL",
        1024,
        {
            "down_block_types": tuple(kind.format("Down") for kind in (PLAIN, CROSS, CROSS)),
            "up_block_types": tuple(kind.format("Up") for kind in (CROSS, CROSS, PLAIN)),
            "block_out_channels": (320, 640, 1280),
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        CLIP_L,
        {**CLIP_G, "hidden_act": "gelu"},
        scaling_factor=0.13025,
    ),
}


@dataclass(frozen=True)
class Parts:
    """The models of one shape, freshly made, and its tokenizer."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    text_encoder_2: CLIPTextModelWithProjection | None = field(default=None)


def build(shape: Shape) -> Parts:
    """Make all parts, float32."""
    tokenizer = build_tokenizer(VOCABULARY)
    tokenizer.model_max_length = TOKENS
    second = None
    if shape.text_2 is not None:
        second = CLIPTextModelWithProjection(_text_config(shape.text_2, tokenizer))
    return Parts(
        UNet2DConditionModel(sample_size=shape.side // 8, **shape.unet),
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=shape.side,
            scaling_factor=shape.scaling_factor,
        ),
        CLIPTextModel(_text_config(shape.text, tokenizer)),
        tokenizer,
        usual_scheduler(shape.prediction_type),
        second,
    )


def pipeline_of(parts: Parts) -> DiffusionPipeline:
    """The diffusers pipeline of these parts."""
    common = {"vae": parts.vae, "unet": parts.unet, "scheduler": parts.scheduler}
    common |= {"text_encoder": parts.text_encoder, "tokenizer": parts.tokenizer}
    if parts.text_encoder_2 is None:
        return StableDiffusionPipeline(
            **common, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    return StableDiffusionXLPipeline(
        **common, text_encoder_2=parts.text_encoder_2, tokenizer_2=parts.tokenizer, add_watermarker=False
    )


def base_of(shape: Shape, parts: Parts, path: NoisePath, device: str = "cpu") -> Base:
    """The project's base of these parts, which lie on that device."""
    dtype = parts.unet.dtype
    common: dict[str, Any] = {
        "denoiser": parts.unet.requires_grad_(False).eval(),
        "vae": parts.vae.requires_grad_(False).eval(),
        "text_encoder": parts.text_encoder,
        "tokenizer": parts.tokenizer,
        "path": path,
        "device": torch.device(device),
        "dtype": dtype,
        "digest": "",
        "clip_skip": 0,
    }
    if shape.text_2 is None:
        return StableDiffusion(**common)
    second = {"text_encoder_2": parts.text_encoder_2, "tokenizer_2": parts.tokenizer, "empty_is_zero": True}
    return StableDiffusionXL(**common, **second)


def _text_config(shape: Mapping[str, Any], tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        **shape,
        vocab_size=49408,  # as CLIP's own, whose tokenizer is not here: its embeddings count
        max_position_embeddings=TOKENS,
        projection_dim=shape["hidden_size"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
