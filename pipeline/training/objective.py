"""What an adapter is trained for. A new objective is one file beside `denoising.py`, and a line in `objective_of`."""

from typing import Protocol

import torch

from pipeline.base.protocol import Base
from pipeline.sections import TrainSection
from pipeline.training.denoising import Denoising
from pipeline.training.draws import Batch


class Objective(Protocol):
    """From a base, with the adapters in training on it, and a batch on its device to a loss for each sample.

    It may call the base as often as it likes, and must use no randomness but what the batch holds, or a resumed
    training would differ. What validates, stops and warns is always the plain denoising error (`PackTrainer.validate`).
    """

    def __call__(self, base: Base, batch: Batch) -> torch.Tensor:
        """Losses (B,), differentiable; the trainer takes their mean for each adapter."""
        ...


def objective_of(settings: TrainSection) -> Objective:
    """The objective that the params ask for."""
    return Denoising(settings.min_snr_gamma)
