"""Pictures as the models see them and as people do: tensors in [0, 1], and uint8 arrays."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

Frame = NDArray[np.uint8]
"""One picture: (H, W, 3) uint8, sRGB."""


def to_arrays(pictures: torch.Tensor) -> list[Frame]:
    """(N, 3, H, W) in [0, 1] to N arrays (H, W, 3) uint8, rounded to the nearest."""
    scaled = (pictures.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return list(scaled.permute(0, 2, 3, 1).cpu().numpy())


def read_pictures(paths: Iterable[Path]) -> torch.Tensor:
    """RGB pictures of one size to (N, 3, H, W) float32 in [0, 1]."""
    pictures = []
    for path in paths:
        with Image.open(path) as image:
            pictures.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255)
    return torch.stack(pictures)
