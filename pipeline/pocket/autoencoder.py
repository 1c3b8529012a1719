"""Training the pocket's autoencoder on paintings and textures, and encoding the paintings with it."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from pipeline.params import PocketSection
from pipeline.pocket.layout import LATENT_CHANNELS, build_autoencoder, fix_posterior_std, standardise
from pipeline.pocket.optimizers import adamw
from pipeline.pocket.progress import LogMetrics, Training, batches

CROP = 64


def train_autoencoder(
    pictures: torch.Tensor, paintings: int, settings: PocketSection, work: Path, device: torch.device, log: LogMetrics
) -> AutoencoderKL:
    """An autoencoder for pictures (N, 3, 128, 128) uint8, the first `paintings` of which get standardised latents.

    It learns from crops of 64 pixels: it has no attention, so a crop teaches as much a pixel as the whole does.

    The decoder always gets latents with noise of std `latent_noise` added, and that is the posterior's std afterwards.
    So the data that the UNet learns fills all of latent space, thinly but evenly. Without it latents lie on a surface:
    Inversion cannot tell how much noise belongs beside the surface, and comes out far too small. With
    `keep_encoder` only the decoder learns, and the latents that a UNet already knows stay as they are.
    """
    torch.manual_seed(settings.seed)
    model = build_autoencoder().to(device, memory_format=torch.channels_last)
    if settings.init_from:
        model.load_state_dict(AutoencoderKL.from_pretrained(settings.init_from, subfolder="vae").state_dict())
    keep = settings.keep_encoder
    learning = nn.ModuleList([model.post_quant_conv, model.decoder]) if keep else model
    optimizers = [adamw(list(learning.parameters()), settings.autoencoder_rate)]
    training = Training(model, optimizers, settings.autoencoder_steps, settings.ema, work / "autoencoder.pt")
    indices = list(batches(len(pictures), settings.autoencoder_batch, settings.autoencoder_steps, settings.seed))

    def loss_at(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        crops = random_crops(pictures[indices[step]], generator).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.set_grad_enabled(not keep):
                mean = model.encode(crops).latent_dist.mean.float()
            latents = mean if keep else batch_standardised(mean)
            noise = torch.randn(latents.shape, generator=generator).to(device)
            decoded = model.decode(latents + settings.latent_noise * noise).sample
        return reconstruction_loss(decoded.float(), crops)

    training.run(loss_at, log, "autoencoder")
    training.use_average()
    if keep:
        fix_posterior_std(model, torch.full((LATENT_CHANNELS,), settings.latent_noise, device=device))
    else:
        mean, std = latent_statistics(model, pictures[:paintings][:512], device)
        mixed_std = latent_statistics(model, pictures[:: len(pictures) // 512 + 1], device)[1]
        standardise(model, mean, std)
        fix_posterior_std(model, settings.latent_noise * mixed_std / std)
    return model.eval().requires_grad_(False)


def batch_standardised(latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) with every channel brought to mean 0 and std 1 over the batch.

    So the encoder cannot outgrow the noise, and no weight of a KL term has to be found.
    """
    return (latents - latents.mean(dim=(0, 2, 3), keepdim=True)) / latents.std(dim=(0, 2, 3), keepdim=True)


def random_crops(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, H, W) uint8 to mirrored crops (B, 3, 64, 64) in [-1, 1]."""
    room_y, room_x = pictures.shape[2] - CROP + 1, pictures.shape[3] - CROP + 1
    crops = []
    for picture in pictures:
        y = int(torch.randint(room_y, (), generator=generator))
        x = int(torch.randint(room_x, (), generator=generator))
        crop = picture[:, y : y + CROP, x : x + CROP]
        crops.append(crop.flip(-1) if torch.rand((), generator=generator) < 0.5 else crop)
    return torch.stack(crops).float().div_(127.5).sub_(1)


def reconstruction_loss(decoded: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 for sharpness, L2 for fidelity, and differences of neighbouring pixels as the eye for edges."""
    edges = F.l1_loss(decoded.diff(dim=-1), target.diff(dim=-1)) + F.l1_loss(decoded.diff(dim=-2), target.diff(dim=-2))
    return F.l1_loss(decoded, target) + 2 * F.mse_loss(decoded, target) + edges


@torch.no_grad()
def latent_statistics(
    model: AutoencoderKL, pictures: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std (C,) of the latents of pictures (N, 3, H, W) uint8."""
    latents = torch.cat([model.encode(to_pixels(part, device)).latent_dist.mean for part in pictures.split(32)])
    return latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))


@torch.no_grad()
def encode_all(model: AutoencoderKL, pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Posterior means and stds of all pictures (N, 3, 128, 128) uint8: (N, 2, 8, 16, 16) float16 on the CPU."""
    parts = []
    for part in tqdm(pictures.split(32), desc="encode", unit="batch"):
        with torch.autocast(device.type, torch.bfloat16):
            posterior = model.encode(to_pixels(part, device)).latent_dist
        parts.append(torch.stack([posterior.mean, posterior.std], dim=1).half().cpu())
    return torch.cat(parts)


def to_pixels(pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 to [-1, 1] on the device."""
    return pictures.to(device, memory_format=torch.channels_last).float().div_(127.5).sub_(1)
