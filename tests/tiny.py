"""A tiny random Stable Diffusion, built on the spot: real code paths in milliseconds."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipeline.base.conditioning import Conditioning
from pipeline.base.opening import open_base
from pipeline.base.protocol import Base
from pipeline.pocket.tokenizer import build_tokenizer
from pipeline.sections import BaseSection


def text_config(tokenizer: CLIPTokenizer, width: int, projection: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=projection,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def usual_scheduler(prediction_type: str) -> DDIMScheduler:
    """Stable Diffusion's schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def build_tiny(
    prediction_type: str = "epsilon", seed: int = 0, takes: int = 4, at_the_top: bool = False
) -> StableDiffusionPipeline:
    """takes: the UNet's channels, 9 for a base that fills holes. at_the_top: attention at the upper level, where it has
    more to learn and would take a third of all tests' time."""
    torch.manual_seed(seed)
    tokenizer: CLIPTokenizer = build_tokenizer(["a", "red", "blue", "hill", "lake"])
    config = text_config(tokenizer, width=16, projection=16, layers=1)
    levels = ["DownBlock2D", "CrossAttnDownBlock2D"]
    if at_the_top:
        levels.reverse()
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=takes,
        out_channels=4,
        block_out_channels=(16, 32) if at_the_top else (16, 16),
        layers_per_block=1,
        down_block_types=levels,
        up_block_types=[name.replace("Down", "Up") for name in reversed(levels)],
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    scheduler = usual_scheduler(prediction_type)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(config),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_tiny_xl(prediction_type: str = "epsilon", seed: int = 0, takes: int = 4) -> StableDiffusionXLPipeline:
    """As `build_tiny`, with the second text encoder, pooled captions and sizes of an XL."""
    small = build_tiny(prediction_type, seed)
    torch.manual_seed(seed + 1)
    config = text_config(small.tokenizer, width=24, projection=20, layers=2)
    first = text_config(small.tokenizer, width=16, projection=16, layers=2)
    return StableDiffusionXLPipeline(
        vae=small.vae,
        text_encoder=CLIPTextModel(first),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=small.tokenizer,
        tokenizer_2=build_tokenizer(["a", "red", "blue", "hill", "lake"]),
        unet=xl_unet(width=16 + 24, numbers=6, takes=takes),
        scheduler=small.scheduler,
        add_watermarker=False,
    )


def build_tiny_refiner(prediction_type: str = "epsilon", seed: int = 7) -> StableDiffusionXLImg2ImgPipeline:
    """SDXL's refiner: the second text encoder alone, and five numbers with an aesthetic score."""
    small = build_tiny(prediction_type, seed)
    torch.manual_seed(seed + 1)
    return StableDiffusionXLImg2ImgPipeline(
        vae=small.vae,
        text_encoder=None,
        text_encoder_2=CLIPTextModelWithProjection(text_config(small.tokenizer, width=24, projection=20, layers=2)),
        tokenizer=None,
        tokenizer_2=small.tokenizer,
        unet=xl_unet(width=24, numbers=5),
        scheduler=small.scheduler,
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def xl_unet(width: int, numbers: int, takes: int = 4) -> UNet2DConditionModel:
    """width: of a caption's embedding. numbers: of a picture, that it takes besides. takes: channels in."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=takes,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=numbers * 8 + 20,
        norm_num_groups=8,
    )


def save_tiny_xl_and_refiner(folder: Path) -> Path:
    """A tiny XL in `base` and its refiner in `refiner` below a folder."""
    build_tiny_xl().save_pretrained(folder / "base")
    build_tiny_refiner().save_pretrained(folder / "refiner")
    return folder


def save_tiny_net(folder: Path, base: Path) -> Path:
    """A ControlNet for the tiny base in the folder `base`, as made for training."""
    net = ControlNetModel.from_unet(open_tiny(base).denoiser, conditioning_embedding_out_channels=(4, 8))
    net.save_pretrained(folder)
    return folder


def section(folder: Path, **changes: object) -> BaseSection:
    """The params of a base in `folder`, pinned as a user would pin it."""
    from pipeline.base.checking import base_digest

    unpinned = BaseSection(source=str(folder), revision=None, config=None, dtype="float32", clip_skip=0, adapters=())
    return unpinned.model_copy(update={"revision": base_digest(unpinned), **changes})


def open_tiny(folder: Path, dtype: str = "float32", device: str | torch.device = "cpu") -> Base:
    return open_base(section(folder, dtype=dtype), torch.device(device))


def caption_of(embedding: torch.Tensor) -> Conditioning:
    """Embeddings (B, L, D) as a Stable Diffusion 1.x or 2.x takes them."""
    return Conditioning({"embedding": embedding})


def in_double(base: Base) -> Base:
    """The base with its denoiser in float64, for comparisons that rounding must not blur."""
    base.denoiser.double()
    return type(base)(**{**vars(base), "dtype": torch.float64})
