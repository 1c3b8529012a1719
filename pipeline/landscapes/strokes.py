"""What the painter paints with: smooth and jagged noise from small random tables, and edges with exact coverage."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def lerp(a: Floats, b: Floats, t: Floats) -> Floats:
    """a where t is 0, b where t is 1."""
    return a + (b - a) * t


def smoothstep(t: Floats) -> Floats:
    """0 below 0, 1 above 1, and a smooth rise between."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def _weights(at: Floats, knots: int) -> Floats:
    """Rows of smooth (cubic B-spline) weights over `knots` evenly spaced knots, for positions in [0, 1]."""
    distance = np.abs(at[:, None] * (knots - 3) + 1 - np.arange(knots, dtype=np.float32))
    near = 2 / 3 - distance**2 * (1 - distance / 2)
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def smooth_noise(table: Floats, x: Floats, y: Floats) -> Floats:
    """The table (rows, columns) of random values as a smooth surface over x (W,) and y (H,) in [0, 1]: (H, W)."""
    return _weights(y, table.shape[0]) @ table @ _weights(x, table.shape[1]).T


def smooth_line(table: Floats, x: Floats) -> Floats:
    """The table (knots,) as a smooth curve over x (W,) in [0, 1]."""
    return _weights(x, len(table)) @ table


def jagged_line(tables: list[Floats], x: Floats, low: float, high: float) -> Floats:
    """A fractal polyline over x: the first table coarse at full strength, each next one at half of it."""
    total = np.zeros_like(x)
    for octave, table in enumerate(tables):
        knots = np.linspace(low, high, len(table), dtype=np.float32)
        total += np.interp(x, knots, table).astype(np.float32) * 0.5**octave
    return total


def below(top: Floats, y: Floats) -> Floats:
    """How much of each pixel lies below the line top (W,), for pixel centres y (H,), both in [0, 1]: (H, W)."""
    height = 1 / (y[1] - y[0])
    slope = np.gradient(top) * height
    # Across a steep edge the distance that counts is the one at right angles to it.
    sharpness = height / np.sqrt(1 + slope * slope)
    return np.clip((y[:, None] - top) * sharpness + 0.5, 0, 1)


def dots(at_x: Floats, at_y: Floats, radius: Floats, strength: Floats, x: Floats, y: Floats, aspect: float) -> Floats:
    """Soft round dots, summed: (H, W). Positions in [0, 1], radii in picture heights."""
    across = np.exp(-(((x[None] - at_x[:, None]) * aspect / radius[:, None]) ** 2))
    down = np.exp(-(((y[None] - at_y[:, None]) / radius[:, None]) ** 2))
    return (down * strength[:, None]).T @ across


def over(picture: Floats, colour: Floats, cover: Floats) -> None:
    """Lays colour (3,) or (H, W, 3) over picture (H, W, 3), in place, where cover (H, W) is 1."""
    picture += (colour - picture) * cover[..., None]
