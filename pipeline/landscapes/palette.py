"""Colours and light of the painter's world, one number a value of an attribute, mixed by weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.landscapes.strokes import Floats
from pipeline.landscapes.world import FOREGROUNDS, ROCKS, TIMES, Scene


@dataclass(frozen=True)
class Weights:
    """How much of each attribute value a picture holds: time (5,), rock (4,), foreground (5,), each summing to 1."""

    time: Floats
    rock: Floats
    foreground: Floats
    ridges: float
    orb: float


def weights_of(scene: Scene) -> Weights:
    """All weight on the scene's own values."""
    return Weights(
        time=np.eye(len(TIMES), dtype=np.float32)[TIMES.index(scene.time)],
        rock=np.eye(len(ROCKS), dtype=np.float32)[ROCKS.index(scene.rock)],
        foreground=np.eye(len(FOREGROUNDS), dtype=np.float32)[FOREGROUNDS.index(scene.foreground)],
        ridges=float(scene.ridges),
        orb=float(scene.orb),
    )


def mix_weights(a: Weights, b: Weights, mix: float) -> Weights:
    """Weights the share `mix` of the way from a to b; exactly a at 0 and b at 1."""
    near, far = 1 - mix, mix
    return Weights(
        time=(a.time * near + b.time * far).astype(np.float32),
        rock=(a.rock * near + b.rock * far).astype(np.float32),
        foreground=(a.foreground * near + b.foreground * far).astype(np.float32),
        ridges=a.ridges * near + b.ridges * far,
        orb=a.orb * near + b.orb * far,
    )


def _colours(*rows: tuple[int, int, int]) -> Floats:
    return np.array(rows, dtype=np.float32) / 255


# One row a time of day: dawn, day, sunset, night, overcast.
_ZENITH = _colours((98, 122, 190), (30, 104, 192), (62, 44, 112), (8, 12, 40), (124, 135, 150))
_MIDDLE = _colours((208, 164, 200), (98, 170, 232), (216, 90, 98), (20, 34, 84), (162, 171, 182))
_LOW = _colours((255, 214, 176), (210, 234, 245), (255, 184, 92), (60, 84, 138), (206, 210, 212))
_LIGHT = np.array(
    [(1.08, 0.84, 0.74), (1.08, 1.04, 0.95), (1.18, 0.72, 0.46), (0.42, 0.53, 0.76), (0.78, 0.80, 0.83)],
    dtype=np.float32,
)
_SHADE = np.array(
    [(0.46, 0.42, 0.62), (0.44, 0.52, 0.70), (0.38, 0.26, 0.42), (0.11, 0.15, 0.30), (0.52, 0.55, 0.61)],
    dtype=np.float32,
)
_DISC = _colours((255, 240, 206), (255, 250, 222), (255, 226, 140), (244, 244, 226), (255, 255, 255))
_GLOW = _colours((255, 206, 160), (255, 244, 204), (255, 168, 74), (140, 160, 214), (230, 230, 230))
_CLOUD = _colours((255, 206, 204), (255, 255, 255), (255, 142, 104), (52, 66, 112), (216, 219, 222))
_UNDERCLOUD = _colours((180, 146, 190), (196, 214, 234), (138, 62, 108), (22, 32, 72), (134, 142, 154))
_PALE = np.array((0.97, 0.93, 1.0), dtype=np.float32)
_GLOW_SIZE = np.array([0.26, 0.20, 0.32, 0.17, 0.2], dtype=np.float32)
_ORB_HEIGHT = np.array([0.34, 0.16, 0.36, 0.17, 0.2], dtype=np.float32)
_CLOUDINESS = np.array([0.40, 0.36, 0.46, 0.26, 0.80], dtype=np.float32)
_HAZE = np.array([0.27, 0.20, 0.24, 0.20, 0.28], dtype=np.float32)


@dataclass(frozen=True)
class Light:
    """The light of a time of day: colours (3,) in [0, 1], except `light` and `shade`, which multiply a surface's."""

    zenith: Floats
    middle: Floats
    low: Floats
    light: Floats
    shade: Floats
    disc: Floats
    glow: Floats
    cloud: Floats
    undercloud: Floats
    glow_size: float
    orb_height: float
    cloudiness: float
    haze: float
    night: float

    def on(self, surface: Floats, lit: Floats | float) -> Floats:
        """A surface's colour (..., 3) where lit (...) runs from 0 in shade to 1 in full light."""
        lit = np.asarray(lit, dtype=np.float32)[..., None]
        return surface * (self.shade + (self.light - self.shade) * lit)

    def on_snow(self, surface: Floats, lit: Floats | float) -> Floats:
        """As `on`, but paler: snow keeps its white under a coloured sun, or a sunset would turn it to sand."""
        colour = self.on(surface, lit)
        return colour + (colour.max(axis=-1, keepdims=True) * _PALE - colour) * 0.42


def light_of(weights: Weights) -> Light:
    """The light of mixed times of day. Without its orb in view, the direct light is a little weaker."""
    t = weights.time
    shade = t @ _SHADE
    return Light(
        zenith=t @ _ZENITH,
        middle=t @ _MIDDLE,
        low=t @ _LOW,
        light=shade + (t @ _LIGHT - shade) * np.float32(0.86 + 0.14 * weights.orb),
        shade=shade,
        disc=t @ _DISC,
        glow=t @ _GLOW,
        cloud=t @ _CLOUD,
        undercloud=t @ _UNDERCLOUD,
        glow_size=float(t @ _GLOW_SIZE),
        orb_height=float(t @ _ORB_HEIGHT),
        cloudiness=float(t @ _CLOUDINESS),
        haze=float(t @ _HAZE),
        night=float(t[TIMES.index("night")]),
    )


# One row a rock: snowy, rocky, green, desert.
_STONE = _colours((98, 102, 126), (150, 130, 116), (86, 142, 66), (216, 122, 70))
_FOOT = _colours((92, 100, 118), (122, 110, 98), (58, 108, 58), (184, 92, 56))
_SNOW_DEPTH = np.array([0.66, -0.25, -0.25, -0.25], dtype=np.float32)
_HEIGHT = np.array([1.0, 0.94, 0.74, 0.70], dtype=np.float32)
_JAGGED = np.array([0.13, 0.17, 0.025, 0.03], dtype=np.float32)
_EDGE_SOFT = np.array([0.0, 0.0, 0.35, 0.10], dtype=np.float32)
_FACETS = np.array([0.9, 1.0, 0.45, 0.6], dtype=np.float32)
_STRATA = np.array([0.0, 0.0, 0.0, 1.0], dtype=np.float32)


@dataclass(frozen=True)
class Stone:
    """What the mountains are made of: colours (3,), and shape numbers in shares of a peak's height or width."""

    stone: Floats
    foot: Floats
    snow_depth: float
    height: float
    jagged: float
    edge_soft: float
    facets: float
    strata: float
    sharp: float
    round: float
    flat: float


def stone_of(weights: Weights) -> Stone:
    """The stone of mixed rocks."""
    r = weights.rock
    return Stone(
        stone=r @ _STONE,
        foot=r @ _FOOT,
        snow_depth=float(r @ _SNOW_DEPTH),
        height=float(r @ _HEIGHT),
        jagged=float(r @ _JAGGED),
        edge_soft=float(r @ _EDGE_SOFT),
        facets=float(r @ _FACETS),
        strata=float(r @ _STRATA),
        sharp=float(r[0] + r[1]),
        round=float(r[2]),
        flat=float(r[3]),
    )
