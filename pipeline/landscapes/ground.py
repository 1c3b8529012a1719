"""Foregrounds: a lake, a meadow, a pine forest, dunes or a snowfield, and any two of them growing into each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.landscapes.palette import Light, Weights
from pipeline.landscapes.pines import Pines, draw_pines, paint_pines
from pipeline.landscapes.relief import Canvas
from pipeline.landscapes.strokes import Floats, below, dots, over, smooth_line, smooth_noise, smoothstep
from pipeline.landscapes.world import FOREGROUNDS

FOREST = FOREGROUNDS.index("pine forest")
_SOFT = 0.22
_SWELL = np.array([0.0, 0.022, 0.016, 0.020, 0.020], dtype=np.float32)
_GRASS = np.array([(128, 172, 70), (104, 160, 62), (76, 138, 56), (52, 112, 50)], dtype=np.float32) / 255
_SAND = np.array([(226, 178, 116), (232, 172, 100), (226, 158, 84), (214, 142, 70)], dtype=np.float32) / 255
_SNOW = np.array([(214, 224, 242), (222, 230, 244), (228, 234, 246), (232, 238, 248)], dtype=np.float32) / 255
_FLOOR = np.array([(70, 104, 66), (58, 94, 60), (46, 82, 54), (36, 66, 46)], dtype=np.float32) / 255
_FLOWERS = np.array([(255, 236, 120), (236, 96, 110), (250, 244, 240)], dtype=np.float32) / 255
_WATER = np.array((30, 74, 104), dtype=np.float32) / 255


@dataclass(frozen=True)
class Ground:
    """The geometry of every foreground, so that any can turn into any other on the same land."""

    swell: Floats
    hills: Floats
    tone: Floats
    ripples: Floats
    patches: Floats
    flowers: Floats
    dunes: Floats
    pines: list[Pines]


@dataclass(frozen=True)
class _Site:
    """Where a surface is painted: the picture so far, and the rows from the land's upper edge down."""

    picture: Floats
    ground: Ground
    light: Light
    canvas: Canvas
    orb_x: float
    orb: float
    y: Floats
    near: Floats


def draw_ground(rng: np.random.Generator) -> Ground:
    """The land's shape from the generator."""

    def table(*shape: int) -> Floats:
        return rng.uniform(-1, 1, shape).astype(np.float32)

    return Ground(
        swell=table(7),
        hills=table(3, 7),
        tone=table(9, 6),
        ripples=table(40, 7),
        patches=rng.permutation(np.linspace(0, 1, 70)).astype(np.float32).reshape(10, 7),
        flowers=rng.random((4, 48)).astype(np.float32),
        dunes=rng.random((5, 5)).astype(np.float32),
        pines=draw_pines(rng),
    )


def paint_ground(picture: Floats, ground: Ground, weights: Weights, light: Light, canvas: Canvas, orb_x: float) -> None:
    """Paints the foregrounds over picture (H, W, 3), in place; `orb_x` is where a sun glitters on water."""
    swell = smooth_line(ground.swell, canvas.x) + 0.4
    top = canvas.horizon - np.maximum(swell, 0) * float(weights.foreground @ _SWELL)
    first = max(int(top.min() * len(canvas.y)) - 1, 0)
    y = canvas.y[first:]
    # 0 at the horizon, 1 at the lower edge.
    near = np.clip((y - canvas.horizon) / (1 - canvas.horizon), 0, 1)
    # Patches are cut so that nothing has changed at 0 and everything at 1; flatter far away, as land looks.
    patches = smooth_noise(ground.patches, canvas.x, near**0.6)
    patches = smoothstep((patches - 0.2) / 0.6)
    site = _Site(picture, ground, light, canvas, orb_x, weights.orb, y, near)
    land = np.zeros((0,), dtype=np.float32)
    sum_so_far = 0.0
    # In the order of FOREGROUNDS.
    for kind, painter in enumerate((_lake, _meadow, _forest_floor, _dunes, _snowfield)):
        weight = float(weights.foreground[kind])
        if weight <= 0:
            continue
        surface = painter(site)
        sum_so_far += weight
        if sum_so_far == weight:
            land = surface
        else:
            over(land, surface, smoothstep((weight / sum_so_far * (1 + _SOFT) - patches) / _SOFT))
    over(picture[first:], land, below(top, y))
    if weights.foreground[FOREST] > 0:
        paint_pines(picture, ground.pines, light, canvas, float(weights.foreground[FOREST]))


def _layers(site: _Site, colours: Floats, fall: float, snow: bool = False) -> Floats:
    """Rolling land in four bands, each bright along its crest and falling into shade: (rows, W, 3)."""
    ground, light, canvas, y = site.ground, site.light, site.canvas, site.y
    land = np.empty((len(y), len(canvas.x), 3), dtype=np.float32)
    depth = 1 - canvas.horizon
    tops = [np.full_like(canvas.x, canvas.horizon - 0.03)]
    for share, size, table in zip((0.10, 0.32, 0.62), (0.025, 0.045, 0.06), ground.hills, strict=True):
        tops.append(canvas.horizon + depth * share + size * 1.6 * smooth_line(table, canvas.x))
    tone = smooth_noise(ground.tone, canvas.x, np.clip((y - canvas.horizon) / depth, 0, 1))
    for band, top in enumerate(tops):
        below_crest = (y[:, None] - top) / (0.08 + 0.06 * band)
        lit = 1 - fall * smoothstep(below_crest) + 0.16 * tone
        colour = (light.on_snow if snow else light.on)(colours[band], lit)
        if band == 0:
            land[:] = colour
        else:
            over(land, colour, below(top, y))
    veil = 0.34 * np.clip(1 - (y - canvas.horizon) / (0.34 * depth), 0, 1)
    land += (light.low - land) * veil[:, None, None]
    return land


def _meadow(site: _Site) -> Floats:
    canvas = site.canvas
    land = _layers(site, _GRASS, 0.62)
    across, down, size, kind = site.ground.flowers
    down = 0.22 + 0.78 * down
    at_y = canvas.horizon + down * (1 - canvas.horizon)
    radius = (0.005 + 0.011 * down) * (0.7 + 0.5 * size)
    for number, colour in enumerate(_FLOWERS):
        mine = (kind * 3).astype(int) == number
        full = np.full(mine.sum(), 2.2, dtype=np.float32)
        cover = dots(across[mine], at_y[mine], radius[mine], full, canvas.x, site.y, canvas.aspect)
        over(land, site.light.on(colour, 0.85), np.clip(cover - 0.35, 0, 1))
    return land


def _snowfield(site: _Site) -> Floats:
    return _layers(site, _SNOW, 0.86, snow=True)


def _forest_floor(site: _Site) -> Floats:
    return _layers(site, _FLOOR, 0.6)


def _dunes(site: _Site) -> Floats:
    light, canvas, y = site.light, site.canvas, site.y
    land = _layers(site, _SAND, 0.35)
    depth = 1 - canvas.horizon
    for number, (a, b, c, d, e) in enumerate(site.ground.dunes):
        share = number / (len(site.ground.dunes) - 1)
        foot = canvas.horizon + depth * (0.16 + 0.98 * share)
        height = (0.07 + 0.10 * share) * (0.8 + 0.4 * a)
        centre = (0.18 + 0.64 * ((number * 0.618 + b) % 1)) if number else 0.2 + 0.6 * b
        half = (0.30 + 0.22 * share) * (0.8 + 0.5 * c)
        u = (canvas.x - centre) / half
        crest = foot - height * (1.1 * np.exp(-1.6 * np.abs(u) ** 1.35) - 0.1)
        down = (y[:, None] - (foot - height)) / height
        # The crest line winds down the dune from its summit like a letter S.
        winding = (d - 0.5) * 0.9 * down + 0.16 * np.sin(down * 3.4 + e * 6.3) * np.minimum(down, 1)
        side = (u[None] - winding) * canvas.sun_side
        lit = smoothstep(side * half * len(canvas.x) * 0.7 + 0.5)
        lit = lit * (1.04 - 0.20 * smoothstep(down * 0.8)) + (1 - lit) * (0.16 + 0.30 * smoothstep(down * 0.7))
        colour = light.on(_SAND[min(number, 3)], lit)
        haze = 0.30 * (1 - share) ** 2
        colour += (light.low - colour) * haze
        over(land, colour, below(crest, y))
    return land


def _lake(site: _Site) -> Floats:
    picture, light, canvas, y, near = site.picture, site.light, site.canvas, site.y, site.near
    rows = len(canvas.y)
    ripple = smooth_noise(site.ground.ripples, canvas.x, near**0.55)
    wobble = ripple * (0.006 + 0.055 * near[:, None])
    source = canvas.horizon - np.maximum(y - canvas.horizon, 0)[:, None] * 1.04 + wobble
    source = np.clip(np.minimum(source, canvas.horizon) * rows - 0.5, 0, rows - 2)
    low = source.astype(np.intp)
    columns = np.arange(len(canvas.x))[None]
    share = (source - low)[..., None].astype(np.float32)
    mirror = picture[low, columns] * (1 - share) + picture[low + 1, columns] * share
    tint = light.on(_WATER, 0.6)
    mirror += (tint - mirror) * (0.16 + 0.36 * near**1.3)[:, None, None]
    crest = smoothstep((ripple - 0.22) * 5) * (0.10 + 0.12 * near)[:, None]
    over(mirror, light.middle * 0.55 + light.low * 0.45, crest)
    shore = np.exp(-(((y - canvas.horizon) / 0.008) ** 2)) * 0.5
    over(mirror, light.low, np.broadcast_to(shore[:, None], ripple.shape))
    if site.orb > 0:
        spread = 0.030 + 0.06 * near[:, None]
        path = np.exp(-((((canvas.x - site.orb_x) * canvas.aspect) / spread) ** 2))
        over(mirror, light.disc, site.orb * 0.85 * path * smoothstep(ripple * 3.2 + 0.35) * (1 - 0.3 * near)[:, None])
    return mirror
