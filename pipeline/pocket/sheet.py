"""The pocket's sample sheet: samples from captions, below unseen paintings with the same captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.protocol import Base
from pipeline.frames.tensors import to_arrays
from pipeline.landscapes.painter import paint
from pipeline.landscapes.world import HELD_OUT, Scene, caption, draw_scene
from pipeline.pocket.layout import LATENT_CHANNELS, LATENT_SIDE, SIDE
from pipeline.sampling.captions import sample_captions
from pipeline.sampling.solver import Progress, Solver

ROW, ROWS = 8, 3


@dataclass(frozen=True)
class Sampling:
    """How samples are made: as the section `sample` of params.yaml has it."""

    steps: int
    guidance: float
    solver: Solver = "midpoint"
    fresh: float = 0.0


FINEST = Sampling(steps=50, guidance=3.5, solver="ddim", fresh=1.0)
"""What params.yaml has for samples, in twice as many steps."""


def sample_scenes(
    base: Base, scenes: Sequence[Scene], how: Sampling, seed: int, progress: Progress = iter
) -> torch.Tensor:
    """Samples of the pocket from the scenes' captions: (N, 3, 128, 128) in [0, 1], the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(scenes), LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE, generator=generator)
    conditioning = base.condition([caption(scene) for scene in scenes])
    noise, conditioning = noise.to(base.device), conditioning.to(base.device)
    latents = sample_captions(
        base,
        noise,
        conditioning,
        steps=how.steps,
        guidance=how.guidance,
        solver=how.solver,
        fresh=how.fresh,
        seeds=range(seed, seed + len(scenes)),
        progress=progress,
    )
    return base.decode(latents)


def sample_sheet(base: Base, progress: Progress = iter) -> Image.Image:
    """Three double rows of eight: unseen paintings, and below each a sample with its caption."""
    scenes = [draw_scene(HELD_OUT + 900 + index) for index in range(ROW * ROWS)]
    painted = [paint(scene, SIDE, SIDE) for scene in scenes]
    samples = to_arrays(sample_scenes(base, scenes, FINEST, seed=1, progress=progress))
    return Image.fromarray(
        np.concatenate(
            [_row(row[first : first + ROW]) for first in range(0, len(scenes), ROW) for row in (painted, samples)]
        )
    )


def _row(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.concatenate(list(pictures), axis=1)
