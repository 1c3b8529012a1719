"""The pocket's models: a Stable Diffusion 1.x of pocket size, 128x128 pixels, 16x16 latents, 8 pixels a latent."""

import json
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipeline.base.files import remove_local_path
from pipeline.pocket.tokenizer import MAX_TOKENS

SIDE = 128
LATENT_SIDE = 16
LATENT_CHANNELS = 16
CAPTION_WIDTH = 128


def build_autoencoder() -> AutoencoderKL:
    """(B, 3, 128, 128) pixels in [-1, 1] to (B, 16, 16, 16) latents. No attention, so it can learn from crops."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 64, 128, 160),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
        scaling_factor=1.0,  # each latent channel is standardised inside the model, see `latents.standardise`
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Predicts v (Salimans and Ho 2022) for latents (B, 16, 16, 16) and captions (B, 64, 128)."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 128, 176),
        layers_per_block=1,
        cross_attention_dim=CAPTION_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Captions of 64 tokens to embeddings (B, 64, 128)."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CAPTION_WIDTH,
        projection_dim=CAPTION_WIDTH,
        intermediate_size=4 * CAPTION_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule with zero terminal SNR and steps that begin there, so that nights come out dark.

    Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed".
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


def other_layouts(folder: Path, keep_encoder: bool) -> dict[str, list[str]]:
    """Config keys, by part, in which earlier weights that a training starts from differ from what it builds.

    The UNet may have been made for latents of other channels; the autoencoder matters only if its encoder is kept.
    """
    own = {"unet": build_unet(), **({"vae": build_autoencoder()} if keep_encoder else {})}
    found = {}
    for part, model in own.items():
        mine = json.loads(model.to_json_string())
        theirs = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
        free = ("in_channels", "out_channels") if part == "unet" else ()
        keys = [key for key in mine if key not in free and not key.startswith("_") and theirs.get(key) != mine[key]]
        if keys:
            found[part] = sorted(keys)
    return found


def save_pocket(
    folder: Path,
    autoencoder: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    """Write a whole Stable Diffusion 1.x into diffusers folders: UNet and autoencoder in float16, the rest as it is.

    The text encoder stays float32: `from_pretrained` would leave a float16 one beside a float32 UNet, and fail.
    """
    pipe = StableDiffusionPipeline(
        vae=autoencoder.half(),
        text_encoder=text_encoder.float(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    for config in folder.rglob("*.json"):
        remove_local_path(config)
