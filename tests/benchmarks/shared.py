"""What the benchmarks share: the pocket, and unseen paintings."""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from pipeline.base.checking import base_digest
from pipeline.base.device import choose_device
from pipeline.base.opening import open_base
from pipeline.base.protocol import Base
from pipeline.landscapes.painter import paint
from pipeline.landscapes.world import Scene, draw_scene
from pipeline.params import BaseSection


def open_pocket(source: str = "models/pocket", dtype: str = "float32", device: str = "auto") -> Base:
    """The pocket, on the best device there is unless another is asked for."""
    section = BaseSection(source=source, revision=None, config=None, dtype=dtype)
    return open_base(section.model_copy(update={"revision": base_digest(section)}), choose_device(device))


def scenes_from(first: int, count: int) -> list[Scene]:
    """`count` scenes from seed `first` on."""
    return [draw_scene(first + index) for index in range(count)]


def paintings(scenes: Sequence[Scene]) -> torch.Tensor:
    """Their pictures, (N, 3, 128, 128) uint8."""
    painted = [paint(scene, 128, 128) for scene in tqdm(scenes, desc="paint", unit="picture")]
    return torch.from_numpy(np.stack(painted)).permute(0, 3, 1, 2).contiguous()
