"""What the pocket learns from: painted landscapes with captions, landscapes between two captions, and textures."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.landscapes.painter import paint, paint_between
from pipeline.landscapes.textures import dead_leaves, spectral_noise
from pipeline.landscapes.woodcut import woodcut
from pipeline.landscapes.world import Scene, caption, draw_scene
from pipeline.pocket.layout import SIDE


@dataclass(frozen=True)
class Captioned:
    """A picture and its place in caption space: `mix` of the way from caption `first` to caption `second`."""

    first: str
    second: str
    mix: float


def paint_captioned(index: int, seed: int, between: float) -> tuple[NDArray[np.uint8], Captioned]:
    """Painting number `index`: (128, 128, 3) uint8. A share `between` of them lies between two captions."""
    rng = np.random.default_rng([seed, index, 2])
    scene = draw_scene(seed * 10_000_000 + index)
    if rng.random() >= between:
        return paint(scene, SIDE, SIDE), Captioned(caption(scene), caption(scene), 0.0)
    other, mix = _other_scene(scene, rng), float(rng.random())
    return paint_between(scene, other, mix, SIDE, SIDE), Captioned(caption(scene), caption(other), mix)


def _other_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same place with other attributes: half the time all redrawn, else one changed."""
    other = replace(draw_scene(int(rng.integers(10_000_000))), seed=scene.seed)
    if rng.random() < 0.5:
        return other
    name = ("time", "rock", "ridges", "foreground")[rng.integers(4)]
    changed = {name: getattr(other, name)}
    if changed.get("time") == "overcast":
        changed["orb"] = False
    return replace(scene, **changed)


def paint_texture(index: int, seed: int) -> NDArray[np.uint8]:
    """Picture number `index` for the autoencoder alone, (128, 128, 3) uint8.

    Two of four are dead leaves, one is spectral noise, one a landscape cut in wood.
    """
    number = seed * 10_000_000 + index
    if index % 4 == 3:
        return woodcut(paint(draw_scene(number), SIDE, SIDE), number)
    make = spectral_noise if index % 4 == 2 else dead_leaves
    return make(number, SIDE, SIDE)
