"""The first frames of a morph, as its pacing sees them: for whoever waits for the film. No result depends on them."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.outputs import atomic_file

FIRST_LOOKS = Path(".work/previews")
"""A folder for each morph; `morphline studio` shows what is there."""


class FirstLooks:
    """Writes pictures of a morph as they come, named so that they sort along it. What was there before is removed."""

    def __init__(self, key: str) -> None:
        self.folder = FIRST_LOOKS / key
        shutil.rmtree(self.folder, ignore_errors=True)

    def __call__(self, segment: int, alpha: float, picture: np.ndarray) -> None:
        """Write a picture (H, W, 3) uint8 that lies at `alpha` of a segment."""
        with atomic_file(self.folder / f"{segment:03d}-{alpha:.6f}.png") as path:
            Image.fromarray(picture).save(path)
