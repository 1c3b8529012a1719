"""What an adapter is trained for. A new objective is one file beside `denoising.py`, and a line in `objectives.py`."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol, final

import torch

from pipeline.base.conditioning import Conditioning
from pipeline.base.noise_path import NoisePath
from pipeline.base.protocol import Base
from pipeline.training.draws import Batch


@dataclass(frozen=True)
class Trained:
    """What objectives work with. base: with the adapters in training on it, which `without_adapters` leaves out for as
    long as its context lasts. empty_caption: one row, on the base's device."""

    base: Base
    empty_caption: Conditioning
    without_adapters: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Losses:
    """Of a batch. values: (B,), differentiable. observed: (B,), of which each adapter keeps a moving mean; None: of
    nothing."""

    values: torch.Tensor
    observed: torch.Tensor | None = None


class Objective(Protocol):
    """From a base in training and a batch on its device to a loss for each sample.

    It may call the base as often as it likes, and must use no randomness but what comes of the batch and its seeds, or
    a resumed training would differ.

    errors_fall: whether lower `errors` mean that more was learned; else they warn of nothing and stop nothing.
    observes: whether losses come with what is observed.
    """

    errors_fall: ClassVar[bool] = True
    observes: ClassVar[bool] = False

    def __call__(self, trained: Trained, batch: Batch, means: torch.Tensor | None) -> Losses:
        """Losses; the trainer takes the mean of their values for each adapter.

        means: (B,), of each sample's adapter the moving mean of what was observed in earlier steps; None in the first.
        """
        ...

    def errors(self, trained: Trained, batch: Batch) -> torch.Tensor:
        """(B,), what is measured at fixed noise."""
        return self(trained, batch, None).values


class Recordable(Objective):
    """An objective of one pass, whose losses a GPU launches from a record (see `Recorded`): what comes from the host is
    prepared before it."""

    @abstractmethod
    def inputs(self, path: NoisePath, batch: Batch, weighted: bool = True) -> Mapping[str, torch.Tensor]:
        """What losses are computed from, each (B, ...) on the batch's device. weighted: False for what is measured at
        fixed noise."""

    @abstractmethod
    def losses(self, trained: Trained, inputs: Mapping[str, torch.Tensor], conditioning: Conditioning) -> torch.Tensor:
        """(B,), differentiable, with nothing from the host."""

    @final
    def __call__(self, trained: Trained, batch: Batch, means: torch.Tensor | None = None) -> Losses:
        """Losses, and nothing observed."""
        return Losses(self.losses(trained, self.inputs(trained.base.path, batch), batch.conditioning))

    @final
    def errors(self, trained: Trained, batch: Batch) -> torch.Tensor:
        """Without weights."""
        return self.losses(trained, self.inputs(trained.base.path, batch, weighted=False), batch.conditioning)
