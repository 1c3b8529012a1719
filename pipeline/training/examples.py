"""Pictures and captions as the trainer needs them, encoded once and kept by content."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.base.conditioning import Conditioning
from pipeline.base.device import precision_of
from pipeline.base.posterior import Posterior
from pipeline.base.protocol import Base
from pipeline.errors import Problem, UserError
from pipeline.outputs import atomic_file, mark_used
from pipeline.training.code_digest import ENCODING, code_digest

CAPTION = "conditioning/"


OPEN = 256
"""Encoded pictures that are kept in memory; of a larger set the others are read again when they are drawn."""


@dataclass(frozen=True)
class Encoded:
    """What a base made of a picture and its caption: the posterior of its latents (one row), the caption (one row), and
    the posterior of the mirrored picture where flips are asked for."""

    posterior: Posterior
    conditioning: Conditioning
    flipped: Posterior | None = None


@dataclass(frozen=True)
class Example:
    """One picture as the trainer sees it, encoded once.

    digest: of the picture's bytes and the caption; it keys the example's draws. encoded: as it is, or the file that
    keeps it, so that a set of any number of pictures takes the memory of OPEN of them.
    """

    name: str
    digest: str
    encoded: Encoded | Path
    caption: str

    @property
    def posterior(self) -> Posterior:
        """Of its latents, one row, on the CPU."""
        return self._open().posterior

    @property
    def conditioning(self) -> Conditioning:
        """Of its caption, one row, on the CPU."""
        return self._open().conditioning

    @property
    def flipped(self) -> Posterior | None:
        """Of the mirrored picture's latents, where flips are asked for."""
        return self._open().flipped

    def _open(self) -> Encoded:
        return self.encoded if isinstance(self.encoded, Encoded) else _opened(self.encoded)


def encode_example(base: Base, name: str, pixels: torch.Tensor, caption: str, flip: bool, cache: Path) -> Example:
    """A picture (3, H, W) uint8 and its caption, from `cache` if they were ever encoded with this base before.

    flip: encode the mirrored picture too. All of it stays in a file of the cache, and is read to the CPU, where noise
    is drawn, so that a set of thousands takes nothing of an accelerator's memory.
    """
    digest = hashlib.sha256(pixels.contiguous().numpy().tobytes() + caption.encode()).hexdigest()
    inputs = f"{code_digest(ENCODING)} {base.digest} {precision_of(base.dtype)} {tuple(pixels.shape)} {digest} {flip}"
    key = hashlib.sha256(inputs.encode()).hexdigest()
    path = cache / f"{key[:32]}.safetensors"
    if _read(path) is None:
        with atomic_file(path) as partial:
            save_file(_encode(base, pixels, caption, flip), partial)
    return Example(name, digest, path, caption)


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


@functools.lru_cache(maxsize=OPEN)
def _opened(path: Path) -> Encoded:
    """The content of a file of the cache, named by what it was made from.

    Raises:
        UserError: when it was deleted or damaged since it was made.
    """
    tensors = _read(path)
    if tensors is None:
        found = "the encoded picture was deleted or damaged while it was needed"
        raise UserError(Problem(str(path), found, "Run the same again: the training goes on where it was."))
    flipped = Posterior(tensors["flipped_mean"], tensors["flipped_std"]) if "flipped_mean" in tensors else None
    rows = {name.removeprefix(CAPTION): row for name, row in tensors.items() if name.startswith(CAPTION)}
    return Encoded(Posterior(tensors["mean"], tensors["std"]), Conditioning(rows), flipped)


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    """What was kept, or None: a cache that is missing or damaged is filled again."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError):
        return None
    mark_used(path)
    return tensors
