"""Mountain ranges: overlapping peaks, each with a lit and a shaded flank, gullies, a snow cap and haze at its foot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.landscapes.palette import Light, Stone
from pipeline.landscapes.strokes import Floats, below, jagged_line, over, smoothstep

_TABLE = 1536


@dataclass(frozen=True)
class Peak:
    """One mountain. Lengths in picture widths (x) and heights (y)."""

    centre: float
    height: float
    left: float
    right: float
    outline: list[Floats]
    spine: Floats
    gullies: Floats


@dataclass(frozen=True)
class Canvas:
    """Pixel centres x (W,) and y (H,) in [0, 1], the horizon's y, and where light comes from: -1 left, 1 right."""

    x: Floats
    y: Floats
    aspect: float
    horizon: float
    sun_side: float


def draw_range(rng: np.random.Generator, height: float, peaks: int) -> list[Peak]:
    """A range of `peaks` overlapping mountains, the highest (behind) first."""
    shares = rng.uniform(0.45, 0.86, peaks)
    shares[rng.integers(peaks)] = 1.0
    centres = (np.arange(peaks) + rng.uniform(0.15, 0.85, peaks)) / peaks * 1.16 - 0.08
    drawn = []
    for share, centre in zip(shares, centres, strict=True):
        tall = float(height * share)
        widths = tall * rng.uniform(0.85, 1.35, 2) + 0.05
        outline = [rng.uniform(-1, 1, n).astype(np.float32) for n in (9, 19, 41)]
        spine = np.cumsum(rng.uniform(-1, 1, 7)).astype(np.float32)
        gullies = rng.permutation(np.linspace(0, 1, 13)).astype(np.float32)
        drawn.append(Peak(float(centre), tall, float(widths[0]), float(widths[1]), outline, spine, gullies))
    return sorted(drawn, key=lambda peak: -peak.height)


def outline(peak: Peak, stone: Stone, x: Floats) -> Floats:
    """Height of the peak's outline over x (W,), in shares of its own height; below 0 outside its foot."""
    u = np.where(x < peak.centre, (peak.centre - x) / peak.left, (x - peak.centre) / peak.right)
    u = np.abs(u).astype(np.float32)
    shape = np.zeros_like(u)
    if stone.sharp > 0:
        shape += stone.sharp * (1 - u * (1.12 - 0.12 * np.minimum(u, 1)))
    if stone.round > 0:
        shape += stone.round * (1.16 * np.exp(-1.7 * u * u) - 0.16)
    if stone.flat > 0:
        mesa = 0.72 / (1 + (u / 0.66) ** 16) + 0.28 * (1 - u / 1.2)
        shape += stone.flat * mesa
    ragged = jagged_line(peak.outline, x, peak.centre - 1.5 * peak.left, peak.centre + 1.5 * peak.right)
    # The summit itself stays put, so that a peak keeps its height whatever it is made of.
    return shape + stone.jagged * ragged * np.minimum(u * 3, 1)


def range_top(peaks: list[Peak], stone: Stone, rise: float, canvas: Canvas) -> Floats:
    """The skyline (W,) of a range that has risen by the share `rise`: y in [0, 1], the horizon at the lowest."""
    heights = np.stack([outline(peak, stone, canvas.x) * peak.height for peak in peaks]).max(axis=0)
    return canvas.horizon - np.maximum(heights, 0) * stone.height * rise


def paint_range(
    picture: Floats, peaks: list[Peak], stone: Stone, light: Light, haze: float, rise: float, canvas: Canvas
) -> None:
    """Paints a range over picture (H, W, 3), in place; `haze` in [0, 1] veils it in the colour of the low sky."""
    if rise <= 0:
        return
    for peak in peaks:
        _paint_peak(picture, peak, stone, light, haze, rise, canvas)


def _paint_peak(
    picture: Floats, peak: Peak, stone: Stone, light: Light, haze: float, rise: float, canvas: Canvas
) -> None:
    height = peak.height * stone.height * rise
    summit = canvas.horizon - height
    width, rows = len(canvas.x), len(canvas.y)
    # Only the peak's own rectangle is worked on: that is most of the painter's speed.
    top_row = max(int((summit - 0.12 * height) * rows) - 1, 0)
    end_row = min(int(canvas.horizon * rows) + 2, rows)
    first = max(int((peak.centre - 1.6 * peak.left) * width), 0)
    last = min(int((peak.centre + 1.6 * peak.right) * width) + 1, width)
    if last - first < 2 or end_row - top_row < 2:
        return
    x, y = canvas.x[first:last], canvas.y[top_row:end_row]
    cover = below(canvas.horizon - outline(peak, stone, x) * height, y)

    down = np.maximum((y - summit) / height, 0)[:, None]
    half = (peak.left + peak.right) / 2
    across = ((x - peak.centre) / half)[None]
    bend = np.interp(down[:, 0], np.linspace(0, 1.1, 7), peak.spine).astype(np.float32)[:, None]
    side = (across - 0.16 * bend * down) * canvas.sun_side
    pixel = 1 / (half * width)
    lit_flank = smoothstep(side / (pixel + stone.edge_soft) * 0.7 + 0.5)

    # Gullies fan out from above the summit, so they are a function of the slope of the line to it.
    fan = (across + 0.05 * bend) / (down + 0.35)
    table = np.interp(np.linspace(0, 12, _TABLE), np.arange(13), peak.gullies).astype(np.float32)
    index = np.clip((fan * 0.28 + 0.5) * (_TABLE - 1), 0, _TABLE - 1).astype(np.intp)
    gully = table[index]
    facet = smoothstep((gully - 0.5) * (7 - 12 * stone.edge_soft) + 0.5) * stone.facets
    lit = lit_flank * (1 - 0.34 * facet) + (1 - lit_flank) * (0.08 + 0.26 * facet)

    surface = stone.stone + (stone.foot - stone.stone) * smoothstep(down)[..., None]
    if stone.strata > 0:
        bands = 0.5 + 0.5 * np.sin((y - canvas.horizon) * 75 + np.float32(peak.spine[0]) * 3)[:, None, None]
        surface = surface * (1 - stone.strata * 0.24 * smoothstep(bands * 2.4 - 0.7))
    colour = light.on(np.broadcast_to(surface, (*cover.shape, 3)), lit)
    if stone.snow_depth > -0.2:
        teeth = jagged_line(peak.outline, x, peak.centre - 0.9 * peak.left, peak.centre + 0.9 * peak.right)
        line = stone.snow_depth * (0.52 + 0.75 * gully + 0.16 * teeth[::-1]) - 0.04
        snow = np.clip((line - down) * height * rows * 0.45 + 0.5, 0, 1)
        over(colour, light.on_snow(np.ones(3, dtype=np.float32) * 0.98, 0.18 + 0.82 * lit), snow)
    veil = haze + (1 - haze) * 0.42 * smoothstep(down * 1.15 - 0.3)
    colour += (light.low - colour) * veil[..., None]
    over(picture[top_row:end_row, first:last], colour, cover)
