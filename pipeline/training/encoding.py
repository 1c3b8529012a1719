"""Pictures and captions as the trainer needs them, encoded once and kept by content."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.base.stable_diffusion import Posterior, StableDiffusion
from pipeline.outputs import atomic_file
from pipeline.training.code_digest import stamp
from pipeline.training.draws import Sample


def encode_sample(
    base: StableDiffusion, name: str, pixels: torch.Tensor, caption: str, flip: bool, cache: Path
) -> Sample:
    """A picture (3, H, W) uint8 and its caption, from `cache` if they were ever encoded with this base before.

    flip: encode the mirrored picture too. Latents stay on the CPU, where noise is drawn.
    """
    digest = hashlib.sha256(pixels.contiguous().numpy().tobytes() + caption.encode()).hexdigest()
    inputs = f"{stamp()} {base.digest} {base.dtype} {tuple(pixels.shape)} {digest} {flip}"
    key = hashlib.sha256(inputs.encode()).hexdigest()
    path = cache / f"{key[:32]}.safetensors"
    tensors = _read(path)
    if tensors is None:
        tensors = _encode(base, pixels, caption, flip)
        with atomic_file(path) as partial:
            save_file(tensors, partial)
    flipped = Posterior(tensors["flipped_mean"], tensors["flipped_std"]) if flip else None
    conditioning = tensors["conditioning"].to(base.device)
    return Sample(name, digest, Posterior(tensors["mean"], tensors["std"]), conditioning, caption, flipped)


def _encode(base: StableDiffusion, pixels: torch.Tensor, caption: str, flip: bool) -> dict[str, torch.Tensor]:
    picture = pixels[None].float() / 255
    posterior = base.encode(picture)
    tensors = {"mean": posterior.mean, "std": posterior.std, "conditioning": base.condition([caption])}
    if flip:
        mirrored = base.encode(picture.flip(-1))
        tensors |= {"flipped_mean": mirrored.mean, "flipped_std": mirrored.std}
    return {key: value.cpu().contiguous() for key, value in tensors.items()}


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    """What was kept, or None: a cache that is missing or damaged is made again."""
    try:
        return load_file(path)
    except (SafetensorError, OSError):
        return None
