"""Training pictures that are no landscapes, so that the pocket's autoencoder learns what any photograph is made of.

Dead leaves (Lee, Mumford and Huang, "Occlusion Models for Natural Images", 2001) have a photograph's edges and scales;
noise of a given spectrum (learning from such processes: Baradad et al., "Learning to See by Looking at Noise", 2021)
has its textures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.landscapes.strokes import Floats, lerp, over, smooth_noise, smoothstep

SMALLEST, LARGEST = 0.022, 0.40
_GROUND_LEAVES, _LEAVES = 12, 80
_SHAPES = ("ellipse", "polygon", "rectangle", "bar")


def dead_leaves(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    """Overlapping leaves of power-law sizes, antialiased, each of one colour, a gradient, stripes or blotches.

    Sizes are in shares of the shorter side, so a seed shows the same leaves at any size of one aspect. Returns
    (height, width, 3) uint8, the same bytes for the same arguments.
    """
    rng = np.random.default_rng([seed, 2])
    unit = min(width, height)
    x = ((np.arange(width) + 0.5) / unit).astype(np.float32)
    y = ((np.arange(height) + 0.5) / unit).astype(np.float32)
    # A picture has a handful of hues, as a photograph of one place has, in every lightness.
    hues = rng.random((int(rng.integers(2, 6)), 3)).astype(np.float32)
    saturation = rng.uniform(0.1, 0.9)
    # The density of radii falls as their power -2.5; a few large leaves come first, so that no bare ground is left.
    share = rng.random(_LEAVES)
    leaves = (share * SMALLEST**-1.5 + (1 - share) * LARGEST**-1.5) ** (-1 / 1.5)
    # The larger half lies below the smaller, or it would hide it.
    leaves = np.sort(leaves)[::-1]
    leaves[_LEAVES // 2 :] = rng.permutation(leaves[_LEAVES // 2 :])
    radii = np.concatenate([rng.uniform(0.30, 0.65, _GROUND_LEAVES), leaves])
    picture = np.empty((height, width, 3), dtype=np.float32)
    picture[:] = _colour(rng, hues, saturation)
    for radius in radii:
        _leaf(picture, rng, float(radius), x, y, hues, float(saturation))
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def spectral_noise(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    """Noise whose amplitude falls with frequency f as f ** -slope, slope, contrast and colours drawn from the seed.

    Slopes are uniform in 0.5 to 2.5 (photographs lie near 1). Returns (height, width, 3) uint8, the same bytes for the
    same arguments.
    """
    rng = np.random.default_rng([seed, 3])
    slope = rng.uniform(0.5, 2.5)
    contrast = rng.uniform(0.08, 0.26)
    # Channels share most of their pattern, as those of photographs do.
    shared = rng.uniform(0.3, 0.95)
    centre = rng.uniform(0.3, 0.7, 3).astype(np.float32)
    spectrum = np.fft.rfft2(rng.standard_normal((3, height, width), dtype=np.float32))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(spectrum * frequency**-slope, s=(height, width))
    noise = noise * (1 - shared) + noise[:1] * shared
    noise /= noise.std(axis=(1, 2), keepdims=True)
    picture = centre + contrast * noise.transpose(1, 2, 0)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _colour(rng: np.random.Generator, hues: Floats, saturation: float) -> Floats:
    hue = hues[rng.integers(len(hues))] + rng.normal(0, 0.08, 3).astype(np.float32)
    tinted = hue.mean() + (hue - hue.mean()) * saturation
    return np.clip(tinted + np.float32(rng.uniform(-0.45, 0.45)), 0, 1).astype(np.float32)


def _leaf(
    picture: Floats, rng: np.random.Generator, radius: float, x: Floats, y: Floats, hues: Floats, saturation: float
) -> None:
    unit = min(len(x), len(y))
    at_x, at_y = rng.uniform(0, x[-1]), rng.uniform(0, y[-1])
    turn, narrow = rng.uniform(0, np.pi), rng.uniform(0.4, 1.0)
    kind = _SHAPES[rng.integers(len(_SHAPES))]
    corners = int(rng.integers(3, 7))
    jitter = rng.uniform(-0.35, 0.35, corners)
    texture, tempo, phase = rng.random(), rng.uniform(2, 9), rng.uniform(0, 6.28)
    blotches = rng.uniform(-1, 1, (7, 7)).astype(np.float32)
    one, two = _colour(rng, hues, saturation), _colour(rng, hues, saturation)
    blur = rng.uniform(0.5, 4.0) if rng.random() < 0.12 else 0.5

    reach = radius * 1.45 + 2 / unit
    columns = slice(*np.searchsorted(x, (at_x - reach, at_x + reach)))
    rows = slice(*np.searchsorted(y, (at_y - reach, at_y + reach)))
    across = (x[columns] - np.float32(at_x))[None] / np.float32(radius)
    down = (y[rows] - np.float32(at_y))[:, None] / np.float32(radius)
    if not across.size or not down.size:
        return
    u = across * np.float32(np.cos(turn)) + down * np.float32(np.sin(turn))
    v = down * np.float32(np.cos(turn)) - across * np.float32(np.sin(turn))
    if kind == "ellipse":
        outside = (np.hypot(u, v / np.float32(narrow)) - 1) * np.float32(narrow)
    elif kind == "polygon":
        angles = (np.arange(corners) + jitter) * (2 * np.pi / corners)
        outside = np.max([u * np.float32(np.cos(a)) + v * np.float32(np.sin(a)) - 0.62 for a in angles], axis=0)
        outside = np.maximum(outside, np.hypot(u, v) - 1.3)
    else:
        thickness = narrow * (0.9 if kind == "rectangle" else 0.22)
        outside = np.maximum(np.abs(u) - 0.95, np.abs(v) - np.float32(thickness))
    cover = np.clip(0.5 - outside * np.float32(radius * unit / (2 * blur)), 0, 1)

    if texture < 0.30:
        blend = np.zeros_like(cover)
    elif texture < 0.65:
        blend = smoothstep(u * 0.5 + 0.5)
    elif texture < 0.80:
        # Stripes never finer than four pixels or so: what no autoencoder of this size could carry teaches it nothing.
        blend = 0.5 + 0.5 * np.sin(v * np.float32(min(tempo, radius * unit * 0.7)) + np.float32(phase))
    else:
        blend = smooth_noise(blotches, across[0] * 0.35 + 0.5, down[:, 0] * 0.35 + 0.5) + 0.5
    strength = np.float32(0.25 + 0.75 * (texture * 7 % 1))
    over(picture[rows, columns], lerp(one, two, (np.clip(blend, 0, 1) * strength)[..., None]), cover)
