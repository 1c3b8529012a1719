"""Pictures for the tests: photographs that scikit-image carries as package data, and painted ones. No download."""

from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

Floats = NDArray[np.float64]

SIDE = 96
MARGIN = 16  # px around the picture, so that a shift brings in what was really there
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina")
NAMES = (*PHOTOGRAPHS, "hills", "tiles")


def tensor(picture: Floats) -> Tensor:
    """(H, W, 3) to (1, 3, H, W) float32, cut to [0, 1]."""
    return torch.from_numpy(np.clip(picture, 0, 1).astype(np.float32)).permute(2, 0, 1)[None].contiguous()


def stack(pictures: Iterable[Floats]) -> Tensor:
    """Pictures (H, W, 3) of one size to (N, 3, H, W) float32, cut to [0, 1]."""
    return torch.cat([tensor(pixels) for pixels in pictures])


@lru_cache
def wide(name: str) -> Floats:
    """The named picture with its margin, (SIDE + 2 MARGIN,) * 2 + (3,) in [0, 1]."""
    side = SIDE + 2 * MARGIN
    if name == "hills":
        return _hills(side)
    if name == "tiles":
        return _tiles(side)
    pixels = getattr(skimage.data, name)()
    short = min(pixels.shape[:2])
    square = Image.fromarray(pixels[:short, :short]).resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(square) / 255.0


def picture(name: str) -> Floats:
    return window(wide(name), 0, 0)


def window(full: Floats, right: int, down: int) -> Floats:
    """The picture moved by so many pixels, at most MARGIN."""
    top, left = MARGIN - down, MARGIN - right
    return full[top : top + SIDE, left : left + SIDE]


@lru_cache
def distorted(name: str) -> dict[str, list[Floats]]:
    """The named picture under seven kinds of distortion, each in growing strength."""
    full, plain = wide(name), picture(name)
    grain = np.random.default_rng(7).standard_normal(plain.shape)
    grey = plain.mean(2, keepdims=True)
    kinds: dict[str, tuple[Callable[[float], Floats], tuple[float, ...]]] = {
        "blur": (lambda s: gaussian_filter(plain, (s, s, 0)), (0.5, 0.75, 1, 1.5, 2, 3, 4, 6)),
        "noise": (lambda s: plain + s * grain, (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.16, 0.2)),
        "shift right": (lambda s: window(full, int(s), 0), (1, 2, 3, 4, 6, 8, 12, 16)),
        "shift aslant": (lambda s: window(full, int(s), int(s)), (1, 2, 3, 4, 6, 8, 12, 16)),
        "warm tint": (lambda s: plain * np.array([1 + s, 1, 1 - s]), (0.02, 0.05, 0.1, 0.2, 0.4)),
        "fading to grey": (lambda s: plain + s * (grey - plain), (0.1, 0.25, 0.5, 0.75, 1)),
        "darkening": (lambda s: plain**s, (1.05, 1.1, 1.3, 1.6, 2, 2.5)),
    }
    return {kind: [distort(strength) for strength in strengths] for kind, (distort, strengths) in kinds.items()}


def _hills(side: int) -> Floats:
    """Three ranges of hills under an evening sky, with a little grain, and no period."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:side, :side] / side
    canvas = np.stack([0.9 - 0.3 * rows, 0.6 - 0.1 * rows, 0.4 + 0.3 * rows], 2)
    for depth, colour in enumerate(((0.5, 0.4, 0.55), (0.3, 0.3, 0.45), (0.1, 0.2, 0.15))):
        ridge = 0.4 + 0.18 * depth + 0.1 * gaussian_filter(rng.standard_normal(side), 6)[None] * 3
        canvas = np.where((rows > ridge)[..., None], np.array(colour), canvas)
    return gaussian_filter(canvas, (0.6, 0.6, 0)) + 0.01 * rng.standard_normal(canvas.shape)


def _tiles(side: int) -> Floats:
    """Rectangles of flat colour, each over the last: hard edges in two directions and large flat places."""
    rng = np.random.default_rng(5)
    canvas = np.full((side, side, 3), 0.5)
    for _ in range(60):
        top, left = rng.integers(0, side - 8, 2)
        height, width = rng.integers(8, 40, 2)
        canvas[top : top + height, left : left + width] = rng.uniform(0.1, 0.9, 3)
    return canvas
