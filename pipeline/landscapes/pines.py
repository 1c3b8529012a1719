"""The pine forest: rows of crisp trees, the far ones small and in mist, that can also stand half grown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.landscapes.palette import Light
from pipeline.landscapes.relief import Canvas
from pipeline.landscapes.strokes import Floats, over, smoothstep

_NEEDLES = np.array([(62, 108, 84), (38, 82, 64), (20, 54, 46)], dtype=np.float32) / 255
_COUNTS = (30, 17, 9)


@dataclass(frozen=True)
class Pines:
    """One row of trees, in shares (trees,): place within its cell, size, and how wide and how far down it stands."""

    shift: Floats
    size: Floats
    lean: Floats


def draw_pines(rng: np.random.Generator) -> list[Pines]:
    """Three rows of trees, the far one first."""
    return [Pines(*rng.random((3, count)).astype(np.float32)) for count in _COUNTS]


def paint_pines(picture: Floats, rows_of_pines: list[Pines], light: Light, canvas: Canvas, grown: float) -> None:
    """Paints the rows over picture (H, W, 3), in place; `grown` in (0, 1] is the trees' share of their full height."""
    rows = len(canvas.y)
    depth = 1 - canvas.horizon
    for row, plants in enumerate(rows_of_pines):
        count = len(plants.size)
        foot = canvas.horizon + depth * (0.20, 0.52, 1.10)[row]
        heights = (0.085, 0.17, 0.33)[row] * (0.62 + 0.55 * plants.size) * grown
        feet = foot + (plants.lean - 0.5) * 0.03 * (row + 1)
        first = max(int((feet - heights).min() * rows) - 1, 0)
        y = canvas.y[first:]
        # Trees stand one to a cell, so that a pixel has to look at its own cell's and its two neighbours' alone.
        cell = np.floor(canvas.x * (count - 1)).astype(int)
        cover = np.zeros((len(y), len(canvas.x)), dtype=np.float32)
        sunny = np.zeros_like(cover)
        for step in (-1, 0, 1):
            tree = np.clip(cell + step, 0, count - 1)
            centre = (tree + 0.15 + 0.7 * plants.shift[tree]) / (count - 1)
            height = np.maximum(heights[tree], 1e-4)
            down = (y[:, None] - (feet - heights)[tree]) / height
            tiers = (4, 5, 6)[row]
            tier = down * tiers
            tier = tier - np.floor(tier)
            half = height * (0.25 + 0.06 * plants.lean[tree]) * np.minimum(down, 1) * (0.66 + 0.40 * tier)
            offset = (canvas.x - centre) * canvas.aspect
            mine = np.clip((half - np.abs(offset)) * rows * 0.8 + 0.5, 0, 1) * np.clip(down * height * rows + 0.5, 0, 1)
            mine *= np.clip((1 - down) * height * rows + 0.5, 0, 1)
            bright = smoothstep(offset * canvas.sun_side / (height * 0.10) + 0.2)
            sunny = sunny + (bright - sunny) * mine
            cover = cover + mine - cover * mine
        # Between the trunks of a row it is dark: one soft band ties the trees into a wood.
        ground_line = np.clip((y - foot) * rows * 0.12 / (row + 1) + 0.5, 0, 1)[:, None] * min(grown * 1.5, 1)
        cover = np.maximum(cover, ground_line)
        colour = light.on(_NEEDLES[row], 0.10 + 0.62 * sunny)
        mist = (0.34, 0.16, 0.0)[row] + (0.22, 0.2, 0.0)[row] * smoothstep((y - foot + 0.08) / 0.14)
        colour += (light.low - colour) * np.asarray(mist, dtype=np.float32)[:, None, None]
        over(picture[first:], colour, cover)
