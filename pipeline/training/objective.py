"""What an adapter is trained for. A new objective is one file beside `denoising.py`."""

from typing import Protocol

import torch

from pipeline.base.protocol import Base
from pipeline.training.draws import Batch


class Objective(Protocol):
    """From a base, with the adapters in training on it, and a batch on its device to a loss for each sample.

    It may call the base as often as it likes; it must use no randomness of its own but what the batch holds, or a
    resumed training would differ.
    """

    def __call__(self, base: Base, batch: Batch) -> torch.Tensor:
        """Losses (B,), differentiable; the trainer takes their mean for each adapter."""
        ...
