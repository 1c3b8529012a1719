"""What the benchmarks share: the pocket, and unseen paintings."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from pipeline.base.checking import base_digest
from pipeline.base.device import choose_device
from pipeline.base.opening import open_base
from pipeline.base.protocol import Base
from pipeline.distances.features import Features, extract, feature_distance
from pipeline.landscapes.painter import paint
from pipeline.landscapes.world import Scene, draw_scene
from pipeline.morphing.engine import EncodedKeyframe, Recipe, morph_segment
from pipeline.morphing.pacing import paced_frames
from pipeline.sections import BaseSection

# The photographs that scikit-image's package itself carries: of things and places, then of surfaces.
PHOTOGRAPHS = (
    "astronaut", "camera", "cat", "clock", "coffee", "coins", "hubble_deep_field", "moon", "motorcycle", "retina",
    "rocket", "brick", "grass", "gravel",
)  # fmt: skip


def open_pocket(source: str = "models/pocket", dtype: str = "float32", device: str = "auto") -> Base:
    """The pocket, on the best device there is unless another is asked for."""
    section = BaseSection(source=source, revision=None, config=None, dtype=dtype, clip_skip=0, adapters=())
    return open_base(section.model_copy(update={"revision": base_digest(section)}), choose_device(device))


def scenes_from(first: int, count: int) -> list[Scene]:
    """`count` scenes from seed `first` on."""
    return [draw_scene(first + index) for index in range(count)]


def paintings(scenes: Sequence[Scene], side: int = 128) -> torch.Tensor:
    """Their pictures, (N, 3, side, side) uint8."""
    painted = [paint(scene, side, side) for scene in tqdm(scenes, desc="paint", unit="picture")]
    return torch.from_numpy(np.stack(painted)).permute(0, 3, 1, 2).contiguous()


def photographs() -> dict[str, torch.Tensor]:
    """The centres of scikit-image's photographs at 128x128, in colour, (1, 3, 128, 128) in [0, 1] each."""
    import skimage.data

    squares = {}
    for name in PHOTOGRAPHS:
        array = skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
        image = Image.fromarray(array).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side)).resize((128, 128), Image.Resampling.LANCZOS)
        squares[name] = torch.from_numpy(np.asarray(square)).permute(2, 0, 1)[None].float() / 255
    return squares


def paced_segment(
    base: Base,
    pair: tuple[EncodedKeyframe, EncodedKeyframe],
    noise: torch.Tensor,
    frames: int,
    spare: int,
    recipe: Recipe,
    batch: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Alphas (F,) and latents (F, C, h, w) of a segment with perceptual pacing, as a film has it."""

    def make(alphas: torch.Tensor) -> torch.Tensor:
        return morph_segment(base, *pair, noise, alphas, recipe, batch)

    def look(alphas: Sequence[float], latents: torch.Tensor) -> list[Features]:
        return [extract(base.decode(latent[None])) for latent in latents]

    return paced_frames(make, look, lambda a, b: float(feature_distance(a, b)), frames, spare)
