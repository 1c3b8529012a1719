"""Paints scenes of the pocket's world, and pictures that lie between two of them.

One code paints both: every attribute value has a weight, a scene puts all weight on its own values, and a picture
between two scenes mixes their weights. All geometry is a function of the seed and of positions in [0, 1], so any size
and aspect shows the same composition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.landscapes.ground import Ground, draw_ground, paint_ground
from pipeline.landscapes.palette import Light, Stone, Weights, light_of, mix_weights, stone_of, weights_of
from pipeline.landscapes.relief import Canvas, Peak, draw_range, paint_range, range_top
from pipeline.landscapes.strokes import Floats, dots, lerp, over, smooth_noise, smoothstep
from pipeline.landscapes.world import RIDGES, Scene

_ORB_RADIUS = 0.062


@dataclass(frozen=True)
class Geometry:
    """Everything that a seed fixes."""

    horizon: float
    orb_x: float
    orb_shift: float
    ranges: list[list[Peak]]
    clouds: Floats
    stars: Floats
    ground: Ground


def draw_geometry(seed: int) -> Geometry:
    """Where everything stands; the draws do not depend on the attributes, so all scenes of a seed share the land."""
    rng = np.random.default_rng(seed)
    return Geometry(
        horizon=float(rng.uniform(0.63, 0.70)),
        orb_x=float(rng.uniform(0.16, 0.84)),
        orb_shift=float(rng.uniform(-0.04, 0.06)),
        ranges=[
            draw_range(rng, rng.uniform(0.36, 0.45), 4),
            draw_range(rng, rng.uniform(0.19, 0.25), 4),
            draw_range(rng, rng.uniform(0.09, 0.13), 5),
        ],
        clouds=rng.uniform(-1, 1, (13, 7)).astype(np.float32),
        stars=rng.random((4, 46)).astype(np.float32),
        ground=draw_ground(rng),
    )


def paint(scene: Scene, width: int, height: int) -> NDArray[np.uint8]:
    """The scene's picture, (height, width, 3) uint8 sRGB; the same bytes for the same arguments."""
    return _paint(scene.seed, weights_of(scene), width, height)


def paint_between(a: Scene, b: Scene, mix: float, width: int, height: int) -> NDArray[np.uint8]:
    """The picture that lies the share `mix` in [0, 1] of the way from a to b: one landscape, half changed.

    Equals paint(a) at 0 and paint(b) at 1. Returns (height, width, 3) uint8. Raises ValueError where the scenes have
    different seeds, since then nothing stands where it stood, and where mix lies outside [0, 1].
    """
    if a.seed != b.seed:
        raise ValueError(f"paint_between got scenes of seeds {a.seed} and {b.seed}; expected one seed for both")
    if not 0 <= mix <= 1:
        raise ValueError(f"paint_between got mix {mix}; expected 0 to 1")
    return _paint(a.seed, mix_weights(weights_of(a), weights_of(b), mix), width, height)


def _paint(seed: int, weights: Weights, width: int, height: int) -> NDArray[np.uint8]:
    if width < 8 or height < 8:
        raise ValueError(f"the painter got a size of {width}x{height}; expected 8 pixels or more each way")
    geometry = draw_geometry(seed)
    light, stone = light_of(weights), stone_of(weights)
    canvas = Canvas(
        x=((np.arange(width) + 0.5) / width).astype(np.float32),
        y=((np.arange(height) + 0.5) / height).astype(np.float32),
        aspect=width / height,
        horizon=geometry.horizon,
        sun_side=1.0 if geometry.orb_x > 0.5 else -1.0,
    )
    rises = [float(np.clip(weights.ridges - number, 0, 1)) for number in range(len(RIDGES))]
    picture = _sky(geometry, weights, light, stone, rises, canvas)
    for number, (peaks, rise) in enumerate(zip(geometry.ranges, rises, strict=True)):
        nearer = sum(rises[number + 1 :])
        haze = light.haze * (0.35 + 0.95 * nearer)
        paint_range(picture, peaks, stone, light, min(haze, 0.8), rise, canvas)
    paint_ground(picture, geometry.ground, weights, light, canvas, geometry.orb_x)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _sky(
    geometry: Geometry, weights: Weights, light: Light, stone: Stone, rises: list[float], canvas: Canvas
) -> Floats:
    """Gradient, stars, orb with its glow, clouds: (H, W, 3)."""
    up = canvas.y[:, None] / geometry.horizon
    upper = lerp(light.zenith, light.middle, smoothstep(up * 1.55))
    gradient = lerp(upper, light.low, smoothstep((up - 0.38) * 1.6))
    picture = np.repeat(gradient[:, None], len(canvas.x), axis=1).astype(np.float32)
    if light.night > 0:
        across, down, size, strength = geometry.stars
        radius = 0.0055 + 0.004 * size**3
        stars = dots(across, down * 0.6, radius, 0.45 + 0.75 * strength, canvas.x, canvas.y, canvas.aspect)
        over(picture, np.array((0.97, 0.97, 1.0), dtype=np.float32), np.clip(stars, 0, 1) * light.night)
    if weights.orb > 0:
        away = _orb(picture, geometry, weights, light, stone, rises, canvas)
    noise = smooth_noise(geometry.clouds, canvas.x, np.clip(canvas.y / geometry.horizon, 0, 1) ** 0.8)
    level = 0.62 - light.cloudiness * 1.05
    cover = smoothstep((noise - level) * 3.2) * (0.55 + 0.3 * light.cloudiness)
    # A cloud is dark where there is more cloud above than here: at its lower side.
    above = smooth_noise(geometry.clouds, canvas.x, np.clip(canvas.y / geometry.horizon - 0.11, 0, 1) ** 0.8)
    dark = smoothstep((above - noise) * 1.3 + 0.45)
    if weights.orb > 0:
        # Clouds part before the orb: a caption that names it must be right.
        cover *= 1 - 0.9 * weights.orb * np.exp(-((away / (1.9 * _ORB_RADIUS)) ** 4))
    over(picture, lerp(light.cloud, light.undercloud, dark[..., None]), cover)
    return picture


def _orb(
    picture: Floats,
    geometry: Geometry,
    weights: Weights,
    light: Light,
    stone: Stone,
    rises: list[float],
    canvas: Canvas,
) -> Floats:
    skyline = np.min([range_top(p, stone, r, canvas) for p, r in zip(geometry.ranges, rises, strict=True)], axis=0)
    behind = float(np.interp(geometry.orb_x, canvas.x, skyline))
    # However high the mountains stand, about half of the disc shows above them at the least.
    at_y = min(light.orb_height + geometry.orb_shift, behind - 0.35 * _ORB_RADIUS)
    away = np.hypot((canvas.x - geometry.orb_x)[None] * canvas.aspect, (canvas.y - at_y)[:, None])
    glow = np.exp(-((away / light.glow_size) ** 1.25) * 1.4) * 0.85
    over(picture, light.glow, glow * weights.orb)
    disc = np.clip((_ORB_RADIUS * (0.35 + 0.65 * weights.orb) - away) * len(canvas.y) + 0.5, 0, 1)
    over(picture, light.disc, disc * min(weights.orb * 1.5, 1))
    return away
