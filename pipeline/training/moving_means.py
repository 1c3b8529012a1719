"""Of what an objective observes, each adapter's moving mean over the steps."""

from collections.abc import Callable

import torch

DECAY = 0.01
"""The weight of a new step (Guo et al. 2024)."""


class MovingMeans:
    """Means of N adapters over whole steps: the same whether a step is drawn at once, in parts or by several processes.

    mean: (N,), on the device, from 0; `means_at` takes that start out again, as Adam does with its own.
    observes: whether the objective observes anything, in this process or another: one may have no sample of a step.
    """

    def __init__(self, count: int, device: torch.device, observes: bool) -> None:
        self.mean = torch.zeros(count, device=device)
        self._sums, self._before, self._observes = torch.zeros_like(self.mean), self.mean, observes

    def begin(self) -> None:
        """A step begins."""
        self._before = self.mean.clone()
        self._sums.zero_()

    def observe(self, values: torch.Tensor, whole: int) -> None:
        """Values of some of a step's samples, those of the first adapter first. whole: the samples an adapter has."""
        self._sums += values.view(len(self.mean), -1).sum(1) / whole

    def end(self, add_up: Callable[[torch.Tensor], None]) -> None:
        """The step's mean joins the others'. add_up: sums a tensor over the processes that train together."""
        if self._observes:
            add_up(self._sums)
            self.mean += DECAY * (self._sums - self.mean)

    def means_at(self, step: int, samples: int) -> torch.Tensor | None:
        """(samples,) for a batch, each its adapter's mean over the steps before `step`; None before the first."""
        if step == 0:
            return None
        return (self.mean / (1 - (1 - DECAY) ** step)).repeat_interleave(samples // len(self.mean))

    def undo(self, row: int) -> None:
        """An adapter's mean as it was before the step under way."""
        self.mean[row] = self._before[row]

    def tensors(self, row: int) -> dict[str, torch.Tensor]:
        """One adapter's, for its checkpoint; nothing where nothing is observed."""
        return {"objective/mean": self.mean[row].cpu().clone()} if self._observes else {}

    def load(self, row: int, tensors: dict[str, torch.Tensor]) -> None:
        """Put what `tensors` gave back in its place."""
        if "objective/mean" in tensors:
            self.mean[row] = tensors["objective/mean"].to(self.mean)
