"""What the pocket can do, measured: `python -m tests.benchmarks.pocket [--sheet models/pocket/samples.png]`.

Prints the figures of its card: the autoencoder on unseen paintings and on photographs, what a caption is worth, and how
well DDIM inversion comes back. Held-out seeds only. The sheet sets samples under paintings with the same captions.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from pipeline.base.checking import base_digest
from pipeline.base.opening import open_base
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.evaluation.distances import psnr
from pipeline.images.painter import paint
from pipeline.images.tensors import to_arrays
from pipeline.images.world import HELD_OUT, caption, draw_scene
from pipeline.morphing.ddim import invert, sample
from pipeline.morphing.guidance import sample_captions
from pipeline.params import BaseSection

PHOTOGRAPHS = ("astronaut", "coffee", "cat", "rocket")  # of those in scikit-image's package, the colour ones


def paintings(count: int, first: int = HELD_OUT) -> tuple[torch.Tensor, list[str]]:
    """Unseen paintings (N, 3, 128, 128) in [0, 1] and their captions."""
    scenes = [draw_scene(first + index) for index in range(count)]
    pictures = np.stack([paint(scene, 128, 128) for scene in scenes])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255, [caption(scene) for scene in scenes]


def photographs() -> torch.Tensor:
    """scikit-image's colour photographs, their centres at 128x128: (N, 3, 128, 128) in [0, 1]."""
    import skimage.data

    squares = []
    for name in PHOTOGRAPHS:
        image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side)).resize((128, 128), Image.Resampling.LANCZOS)
        squares.append(np.asarray(square))
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255


def reconstruction(base: StableDiffusion, pictures: torch.Tensor) -> torch.Tensor:
    """PSNR (N,) of what the autoencoder makes of pictures."""
    return torch.cat([psnr(base.decode(base.encode(part).mean), part) for part in pictures.split(20)])


@torch.no_grad()
def caption_losses(base: StableDiffusion, pictures: torch.Tensor, captions: list[str]) -> tuple[float, float]:
    """Denoising loss with the right captions and with those of other pictures, at the same noise and timesteps."""
    generator = torch.Generator().manual_seed(0)
    latents, conditioning = base.encode(pictures).mean, base.condition(captions)
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.linspace(0, len(base.schedule) - 1, len(latents)).long()
    noisy, target = base.schedule.add_noise(latents, noise, timesteps), base.schedule.target(latents, noise, timesteps)
    losses = [
        float((base.predict(noisy, timesteps, given) - target).square().mean())
        for given in (conditioning, conditioning.roll(1, dims=0))
    ]
    return losses[0], losses[1]


@torch.no_grad()
def round_trip(base: StableDiffusion, pictures: torch.Tensor, captions: list[str], steps: int) -> tuple[float, float]:
    """Mean PSNR that inversion and sampling cost beyond the autoencoder, and the std of the inverted noise."""
    conditioning = base.condition(captions)

    def predict(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        return base.predict(latents, torch.full((len(latents),), timestep), conditioning)

    noise = invert(base.encode(pictures).mean, predict, base.schedule, steps, lambda x: tqdm(list(x), desc="invert"))
    back = base.decode(sample(noise, predict, base.schedule, steps, lambda x: tqdm(list(x), desc="back")))
    return float((reconstruction(base, pictures) - psnr(back, pictures)).mean()), float(noise.std())


def sheet(base: StableDiffusion, path: Path) -> None:
    """Paintings above samples with the same captions, three double rows of eight."""
    pictures, captions = paintings(24, HELD_OUT + 900)
    noise = torch.randn(24, base.unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(1))
    latents = sample_captions(
        base,
        noise,
        base.condition(captions),
        {},
        steps=30,
        guidance=2.0,
        progress=lambda x: tqdm(list(x), desc="sheet"),
    )
    made, painted = to_arrays(base.decode(latents)), to_arrays(pictures)
    rows = [np.concatenate(row[i : i + 8], axis=1) for i in range(0, 24, 8) for row in (painted, made)]
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="models/pocket")
    parser.add_argument("--paintings", type=int, default=500)
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    section = BaseSection(source=arguments.base, revision=None, config=None, dtype="float32")
    pinned = section.model_copy(update={"revision": base_digest(section)})
    base = open_base(pinned, torch.device("cpu"))
    pictures, captions = paintings(arguments.paintings)
    print(f"autoencoder, {len(pictures)} unseen paintings: {float(reconstruction(base, pictures).mean()):.2f} dB")
    for name, value in zip(PHOTOGRAPHS, reconstruction(base, photographs()).tolist(), strict=True):
        print(f"autoencoder, photograph {name}: {value:.2f} dB")
    right, wrong = caption_losses(base, pictures[:200], captions[:200])
    print(f"denoising loss with the right caption {right:.4f}, with another's {wrong:.4f}")
    gap, std = round_trip(base, pictures[:24], captions[:24], steps=50)
    print(f"inversion and back, 50 steps, no adapter: {gap:.2f} dB under the autoencoder; inverted std {std:.3f}")
    if arguments.sheet:
        sheet(base, arguments.sheet)


if __name__ == "__main__":
    main()
