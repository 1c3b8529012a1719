"""A picture cut in wood: one black block of swelling lines, two flat inks, paper. The painter never paints so."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.landscapes.strokes import Floats, smoothstep

PAPER = np.array((242, 232, 209), dtype=np.float32) / 255
BLACK = np.array((28, 24, 28), dtype=np.float32) / 255
INKS = np.array([(206, 66, 44), (226, 162, 62), (50, 98, 136), (92, 136, 84)], dtype=np.float32) / 255
"""Vermilion, ochre, indigo and green; a print uses two of them."""

_PERIOD = 6.4
"""Distance of two lines, where the shorter side is 128 pixels: a line of middle tone is then 3 pixels wide."""


def woodcut(picture: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """The picture (H, W, 3) as a relief print of four tones, (H, W, 3) uint8; the same bytes for the same arguments.

    Lines swell with darkness and bend along the shapes; `seed` turns the hand and shifts the colour blocks against the
    black one. Line widths scale with the shorter side.
    """
    rng = np.random.default_rng([seed, 4])
    turn, wave = rng.uniform(-0.45, 0.45), rng.uniform(-1, 1, 4)
    height, width = picture.shape[:2]
    unit = min(height, width) / 128
    colour = picture.astype(np.float32) / 255
    darkness = _darkness(colour, unit)
    shift = np.round(rng.uniform(-1.2, 1.2, 2) * unit).astype(int)

    print_ = np.broadcast_to(PAPER, colour.shape).copy()
    for ink, block in _colour_blocks(colour, darkness, unit):
        # The printer never lays a second block quite where the first one was.
        _press(print_, ink, _shifted(block, shift))
    _press(print_, BLACK, _key_block(darkness, float(turn), wave, unit))
    return (np.clip(print_, 0, 1) * 255 + 0.5).astype(np.uint8)


def _darkness(colour: Floats, unit: float) -> Floats:
    """0 in the picture's lightest parts and 1 in its darkest, smooth over about a pixel of 128: (H, W)."""
    luma = _blur(colour @ np.array((0.299, 0.587, 0.114), dtype=np.float32), 0.8 * unit)
    low, high = np.quantile(luma, (0.03, 0.97))
    # A picture of nearly one tone is not stretched into noise.
    return np.clip((high - luma) / max(high - low, 0.25), 0, 1)


def _key_block(darkness: Floats, turn: float, wave: NDArray[np.float64], unit: float) -> Floats:
    """Black (H, W): hatching where the picture is half dark, whole areas where it is darkest, outlines at edges."""
    height, width = darkness.shape
    x = (np.arange(width) / unit)[None]
    y = (np.arange(height) / unit)[:, None]
    # Lines are level curves of height plus tone: over an even tone they run straight, over a slope they follow it.
    relief = _blur(darkness, 5 * unit)
    hand = 1.6 * np.sin(x / 23 + wave[0] * 3) + 1.2 * np.sin(y / 17 + x / 41 + wave[1] * 3)
    phase = (y * np.cos(turn) + x * np.sin(turn) + hand) / _PERIOD + 2.0 * relief
    ridge = np.abs(2 * (phase - np.floor(phase)) - 1)
    swell = darkness * 1.30 - 0.34
    # No knife leaves a hair standing, nor cuts one: thin lines vanish, thin gaps close.
    swell += smoothstep((swell - 0.74) * 10) * 0.5 - smoothstep((0.30 - swell) * 10) * 0.5
    lines = swell - ridge
    steep = np.hypot(*np.gradient(_blur(darkness, 0.9 * unit))) * unit
    outlines = steep * 9 - 0.7
    return np.maximum(_cut(lines), _cut(outlines))


def _colour_blocks(colour: Floats, darkness: Floats, unit: float) -> list[tuple[Floats, Floats]]:
    """The two inks that serve the picture best, and where each is printed: (3,) and (H, W)."""
    smooth = np.stack([_blur(channel, 1.5 * unit) for channel in np.moveaxis(colour, -1, 0)], axis=-1)
    chroma = smooth - smooth.mean(axis=-1, keepdims=True)
    hues = INKS - INKS.mean(axis=-1, keepdims=True)
    hues /= np.linalg.norm(hues, axis=-1, keepdims=True)
    # Greys have no hue to go by: they count as a little blue.
    likeness = chroma @ hues.T + np.array((0, 0, 0.03, 0), dtype=np.float32)
    best = np.argsort(-np.maximum(likeness, 0).mean(axis=(0, 1)), kind="stable")[:2]
    blocks = []
    for ink in best:
        rival = likeness[..., best[best != ink][0]]
        field = np.minimum(likeness[..., ink] - rival, darkness * 0.3 - 0.05)
        blocks.append((INKS[ink], _cut(field)))
    return blocks


def _cut(field: Floats) -> Floats:
    """1 where the field is positive, with an edge one pixel soft: its value over its slope is the distance to it."""
    slope = np.hypot(*np.gradient(field))
    return np.clip(field / np.maximum(slope, 1e-4) + 0.5, 0, 1)


def _shifted(block: Floats, by: NDArray[np.int_]) -> Floats:
    rows, columns = (np.clip(np.arange(size) - step, 0, size - 1) for size, step in zip(block.shape, by, strict=True))
    return block[rows][:, columns]


def _press(print_: Floats, ink: Floats, block: Floats) -> None:
    print_ += (ink - print_) * block[..., None]


def _blur(image: Floats, sigma: float) -> Floats:
    """Gaussian blur of (H, W), sigma in pixels, weights renormalised at the borders."""

    def kernel(size: int) -> Floats:
        distance = np.subtract.outer(np.arange(size), np.arange(size)) / sigma
        weights = np.exp(-0.5 * distance**2)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

    return kernel(image.shape[0]) @ image @ kernel(image.shape[1]).T
