"""Pictures and captions as the trainer needs them, encoded once and kept by content."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.base.conditioning import Conditioning
from pipeline.base.posterior import Posterior
from pipeline.base.protocol import Base
from pipeline.outputs import atomic_file, mark_used
from pipeline.training.code_digest import ENCODING, code_digest

CAPTION = "conditioning/"


@dataclass(frozen=True)
class Example:
    """One picture as the trainer sees it, encoded once: its latents' posterior and its caption (one row).

    digest: of the picture's bytes and the caption; it keys the example's draws. flipped: the mirrored picture's
    posterior, where flips are asked for.
    """

    name: str
    digest: str
    posterior: Posterior
    conditioning: Conditioning
    caption: str
    flipped: Posterior | None = None


def encode_example(base: Base, name: str, pixels: torch.Tensor, caption: str, flip: bool, cache: Path) -> Example:
    """A picture (3, H, W) uint8 and its caption, from `cache` if they were ever encoded with this base before.

    flip: encode the mirrored picture too. All of it stays on the CPU, where noise is drawn, so that a set of thousands
    takes nothing of an accelerator's memory.
    """
    digest = hashlib.sha256(pixels.contiguous().numpy().tobytes() + caption.encode()).hexdigest()
    inputs = f"{code_digest(ENCODING)} {base.digest} {base.dtype} {tuple(pixels.shape)} {digest} {flip}"
    key = hashlib.sha256(inputs.encode()).hexdigest()
    path = cache / f"{key[:32]}.safetensors"
    tensors = _read(path)
    if tensors is None:
        tensors = _encode(base, pixels, caption, flip)
        with atomic_file(path) as partial:
            save_file(tensors, partial)
    flipped = Posterior(tensors["flipped_mean"], tensors["flipped_std"]) if flip else None
    rows = {name.removeprefix(CAPTION): row for name, row in tensors.items() if name.startswith(CAPTION)}
    return Example(name, digest, Posterior(tensors["mean"], tensors["std"]), Conditioning(rows), caption, flipped)


def forget_oldest(cache: Path, limit: int, since: float) -> None:
    """Delete the encoded pictures that were not used for longest until the cache has at most `limit` bytes.

    Those used since that moment (seconds since 1970) stay: a set that is larger must not push itself out.
    """
    known = {path: path.stat() for path in cache.glob("*.safetensors")}
    size = sum(status.st_size for status in known.values())
    for path, status in sorted(known.items(), key=lambda item: item[1].st_mtime):
        if size <= limit or status.st_mtime >= since:
            return
        path.unlink(missing_ok=True)
        size -= status.st_size


def _encode(base: Base, pixels: torch.Tensor, caption: str, flip: bool) -> dict[str, torch.Tensor]:
    picture = pixels[None].float() / 255
    posterior = base.encode(picture)
    tensors = {"mean": posterior.mean, "std": posterior.std}
    tensors |= {f"{CAPTION}{name}": tensor for name, tensor in base.condition([caption]).tensors.items()}
    if flip:
        mirrored = base.encode(picture.flip(-1))
        tensors |= {"flipped_mean": mirrored.mean, "flipped_std": mirrored.std}
    return {key: value.cpu().contiguous() for key, value in tensors.items()}


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    """What was kept, or None: a cache that is missing or damaged is filled again."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError):
        return None
    mark_used(path)
    return tensors
