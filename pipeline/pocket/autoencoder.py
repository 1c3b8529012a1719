"""Training the pocket's autoencoder on paintings, textures and prints, and encoding the paintings with it."""

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from pipeline.pocket.latents import LatentNorm, fix_posterior_std, standardise, standardise_decoder
from pipeline.pocket.layout import LATENT_CHANNELS, SIDE, build_autoencoder
from pipeline.pocket.optimizers import muon_and_adamw
from pipeline.pocket.progress import LogMetrics, Training, batches
from pipeline.sections import PocketSection

CROP = 64
HAAR_LEVELS = 3


class NormedAutoencoder(nn.Module):
    """The autoencoder and the statistics of its latents, trained and averaged as one."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.norm = LatentNorm(LATENT_CHANNELS)


def train_autoencoder(
    pictures: torch.Tensor, paintings: int, settings: PocketSection, work: Path, device: torch.device, log: LogMetrics
) -> AutoencoderKL:
    """An autoencoder for pictures (N, 3, 128, 128) uint8, the first `paintings` of which get standardised latents.

    The decoder always gets latents with noise of std `latent_noise` added, and that is the posterior's std afterwards.
    So the data that the UNet learns fills all of latent space, thinly but evenly. Without it latents lie on a surface:
    Inversion cannot tell how much noise belongs beside the surface, and comes out far too small.

    Encoder and decoder learn together from crops, then the decoder alone from whole pictures. With `keep_encoder`
    there is the second part only, and the latents that a UNet already knows stay as they are.
    """
    torch.manual_seed(settings.seed)
    model = build_autoencoder().to(device, memory_format=torch.channels_last)
    if settings.keep_encoder:
        model.load_state_dict(AutoencoderKL.from_pretrained(settings.init_from, subfolder="vae").state_dict())
        fix_posterior_std(model, torch.full((LATENT_CHANNELS,), settings.latent_noise, device=device))
    else:
        whole = NormedAutoencoder(model).to(device)
        _train_together(whole, pictures, settings, work, log)
        std = whole.norm.std
        mean_of_paintings, std_of_paintings = latent_statistics(model.eval(), pictures[:paintings][:512], device)
        standardise(model, mean_of_paintings, std_of_paintings)
        fix_posterior_std(model, settings.latent_noise * std / std_of_paintings)
    _train_decoder(model, pictures, settings, work, log)
    return model.eval().requires_grad_(False)


def _train_together(
    whole: NormedAutoencoder, pictures: torch.Tensor, settings: PocketSection, work: Path, log: LogMetrics
) -> None:
    """Encoder and decoder from nothing; the decoder's scale of latents is folded into it."""
    model = whole.autoencoder
    optimizers = muon_and_adamw(model, settings.autoencoder_rate, settings.autoencoder_rate / 3)
    training = Training(whole, optimizers, settings.autoencoder_steps, settings.ema, work / "autoencoder.pt")
    indices = list(batches(len(pictures), settings.autoencoder_batch, settings.autoencoder_steps, settings.seed))

    def loss_at(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        crops = random_crops(pictures[indices[step]], generator).to(model.device, memory_format=torch.channels_last)
        with torch.autocast(model.device.type, torch.bfloat16):
            latents = whole.norm(model.encode(crops).latent_dist.mean.float())
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            decoded = model.decode(latents + settings.latent_noise * noise).sample
        return reconstruction_loss(decoded.float(), crops)

    training.run(loss_at, log, "autoencoder")
    training.use_average()
    standardise_decoder(model, -whole.norm.mean / whole.norm.std, 1 / whole.norm.std)


def _train_decoder(
    model: AutoencoderKL, pictures: torch.Tensor, settings: PocketSection, work: Path, log: LogMetrics
) -> None:
    """The decoder on what the encoder gives from now on, whole pictures as at use, as many pixels a step as before.

    Group normalisation divides by a spread that is smaller within a crop than within a picture, so that a decoder
    which knows crops only gives whole pictures too little contrast (four fifths of their power).
    """
    if not settings.decoder_steps:
        return
    learning = nn.ModuleDict({"from_latents": model.post_quant_conv, "decoder": model.decoder})
    optimizers = muon_and_adamw(learning, settings.decoder_rate, settings.decoder_rate / 3)
    training = Training(learning, optimizers, settings.decoder_steps, settings.ema, work / "decoder.pt")
    batch = max(1, settings.autoencoder_batch * CROP**2 // SIDE**2)
    indices = list(batches(len(pictures), batch, settings.decoder_steps, settings.seed + 1))

    def loss_at(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        pixels = to_pixels(mirrored(pictures[indices[step]], generator), model.device)
        with torch.autocast(model.device.type, torch.bfloat16):
            with torch.no_grad():
                posterior = model.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
            decoded = model.decode(posterior.mean + posterior.std * noise).sample
        return reconstruction_loss(decoded.float(), pixels)

    training.run(loss_at, log, "decoder")
    training.use_average()


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


def mirrored(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures (B, 3, H, W), each mirrored by a coin's throw."""
    turned = torch.rand(len(pictures), generator=generator) < 0.5
    return torch.where(turned.view(-1, 1, 1, 1), pictures.flip(-1), pictures)


def reconstruction_loss(decoded: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 for sharpness, L2 for fidelity, and L1 of Haar bands, so that fine detail counts beside large areas."""
    bands = sum(band.abs().mean() for band in haar_bands(decoded - target, HAAR_LEVELS))
    return F.l1_loss(decoded, target) + 2 * F.mse_loss(decoded, target) + 0.5 * bands


def haar_bands(pictures: torch.Tensor, levels: int) -> Iterator[torch.Tensor]:
    """Differences across, down and diagonal of (B, C, H, W) at each level, halves of the level before in size.

    Each divided by four, so that a level's means (handed on to the next) keep the range of the pictures.
    """
    for _ in range(levels):
        one, right = pictures[..., ::2, ::2], pictures[..., ::2, 1::2]
        below, last = pictures[..., 1::2, ::2], pictures[..., 1::2, 1::2]
        yield (one + right - below - last) / 4
        yield (one - right + below - last) / 4
        yield (one - right - below + last) / 4
        pictures = (one + right + below + last) / 4


@torch.no_grad()
def latent_statistics(
    model: AutoencoderKL, pictures: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std (C,) of the latents of pictures (N, 3, H, W) uint8."""
    latents = torch.cat([model.encode(to_pixels(part, device)).latent_dist.mean for part in pictures.split(32)])
    return latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))


@torch.no_grad()
def encode_all(model: AutoencoderKL, pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Posterior means and stds of all pictures (N, 3, 128, 128) uint8: (N, 2, 16, 16, 16) float16 on the CPU."""
    parts = []
    for part in tqdm(pictures.split(32), desc="encode", unit="batch"):
        with torch.autocast(device.type, torch.bfloat16):
            posterior = model.encode(to_pixels(part, device)).latent_dist
        parts.append(torch.stack([posterior.mean, posterior.std], dim=1).half().cpu())
    return torch.cat(parts)


def to_pixels(pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 to [-1, 1] on the device."""
    return pictures.to(device, memory_format=torch.channels_last).float().div_(127.5).sub_(1)
