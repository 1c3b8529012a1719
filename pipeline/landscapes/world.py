"""The pocket's world: mountain landscapes with a closed set of attributes, and their exact captions."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

TIMES = ("dawn", "day", "sunset", "night", "overcast")
ROCKS = ("snowy", "rocky", "green", "desert")
RIDGES = (1, 2, 3)
FOREGROUNDS = ("lake", "meadow", "pine forest", "dunes", "snowfield")
ORBS = (False, True)

HELD_OUT = 1_000_000_000
"""Seeds from here on are never trained on: they belong to sample data, tests and measurements."""

_TIME_PHRASES = dict(zip(TIMES, ("at dawn", "by day", "at sunset", "at night", "under an overcast sky"), strict=True))
_RIDGE_PHRASES = dict(zip(RIDGES, ("one ridge", "two ridges", "three ridges"), strict=True))
_FOREGROUND_PHRASES = dict(
    zip(FOREGROUNDS, ("a lake", "a meadow", "a pine forest", "dunes", "a snowfield"), strict=True)
)


@dataclass(frozen=True)
class Scene:
    """One landscape. `seed` alone fixes the geometry; the other attributes fix what it is made of.

    Raises ValueError for an attribute outside the world, and for an orb under an overcast sky.
    """

    time: str
    rock: str
    ridges: int
    foreground: str
    orb: bool
    seed: int

    def __post_init__(self) -> None:
        for name, allowed in attribute_values().items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"Scene.{name} is {getattr(self, name)!r}; expected one of {allowed}")
        if self.orb and self.time == "overcast":
            raise ValueError("Scene.orb is True under an overcast sky; expected False: clouds hide the sun")
        if self.seed < 0:
            raise ValueError(f"Scene.seed is {self.seed}; expected 0 or more")


def attribute_values() -> dict[str, tuple]:
    """Every attribute but the seed, with all its values in order."""
    return {"time": TIMES, "rock": ROCKS, "ridges": RIDGES, "foreground": FOREGROUNDS, "orb": ORBS}


def all_attributes() -> list[tuple[str, str, int, str, bool]]:
    """Every (time, rock, ridges, foreground, orb) that a Scene may have: 540 of them."""
    return [
        (time, rock, ridges, foreground, orb)
        for time in TIMES
        for rock in ROCKS
        for ridges in RIDGES
        for foreground in FOREGROUNDS
        for orb in (ORBS if time != "overcast" else (False,))
    ]


def draw_scene(seed: int) -> Scene:
    """A scene whose attributes are drawn uniformly from `seed`, which is also the seed of its geometry."""
    # A second stream: the painter's geometry draws from default_rng(seed) and must not be tied to the attributes.
    rng = np.random.default_rng([seed, 1])
    time = TIMES[rng.integers(len(TIMES))]
    rock = ROCKS[rng.integers(len(ROCKS))]
    ridges = RIDGES[rng.integers(len(RIDGES))]
    foreground = FOREGROUNDS[rng.integers(len(FOREGROUNDS))]
    orb = bool(rng.random() < 0.65) and time != "overcast"
    return Scene(time, rock, ridges, foreground, orb, seed)


def caption(scene: Scene) -> str:
    """The scene in words, one phrase an attribute: "snowy mountains at dawn, two ridges, a lake, the sun"."""
    orb = f"{'the' if scene.orb else 'no'} {'moon' if scene.time == 'night' else 'sun'}"
    where = f"{scene.rock} mountains {_TIME_PHRASES[scene.time]}"
    return ", ".join((where, _RIDGE_PHRASES[scene.ridges], _FOREGROUND_PHRASES[scene.foreground], orb))


def words(text: str) -> list[str]:
    """The words and commas of a caption, in order."""
    return re.findall(r"[a-z]+|,", text)


VOCABULARY: tuple[str, ...] = tuple(
    sorted({word for attributes in all_attributes() for word in words(caption(Scene(*attributes, seed=0)))})
)
"""Every word that a caption can hold, and the comma."""
