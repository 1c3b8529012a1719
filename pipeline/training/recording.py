"""An objective's losses, launched from a record on a GPU."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline.base.conditioning import Conditioning
from pipeline.sampling.recorded import Recorded
from pipeline.training.draws import Batch
from pipeline.training.objective import Recordable, Trained


class RecordedLosses:
    """The losses of batches of one size. weighted: as in `Recordable.inputs`.

    then: what is done with them, (B,), on the device, and with whatever tensors are given beside the batch; its result
    is what a call gives.
    """

    def __init__(
        self, objective: Recordable, trained: Trained, weighted: bool, then: Callable[..., torch.Tensor]
    ) -> None:
        self._objective, self._path, self._weighted = objective, trained.base.path, weighted
        self._names = names = list[str](), list[str]()

        def work(*tensors: torch.Tensor) -> torch.Tensor:  # no method: it must not lead back to the record
            inputs = dict(zip(names[0], tensors, strict=False))
            captions = dict(zip(names[1], tensors[len(inputs) :], strict=False))
            losses = objective.losses(trained, inputs, Conditioning(captions))
            return then(losses, *tensors[len(inputs) + len(captions) :])

        self._recorded = Recorded(work, trained.base.device)

    def __call__(self, batch: Batch, *more: torch.Tensor) -> torch.Tensor:
        """What `then` makes of them."""
        inputs, captions = self._objective.inputs(self._path, batch, self._weighted), batch.conditioning.tensors
        self._names[0][:], self._names[1][:] = inputs, captions
        return self._recorded(*inputs.values(), *captions.values(), *more)


def recompute_in_backward(denoiser: ModelMixin) -> None:
    """Gradient checkpointing (Chen et al. 2016), so that it can be recorded: without dropout there is no random state
    to bring back, which would have to be read from the device."""
    has_dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in denoiser.modules())

    def call(module: nn.Module, *given: Any) -> Any:
        return checkpoint(module, *given, use_reentrant=False, preserve_rng_state=has_dropout)

    denoiser.enable_gradient_checkpointing(call)
