"""An objective's losses, launched from a record on a GPU."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline.base.conditioning import Conditioning
from pipeline.base.recorded import Recorded
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
        self._objective, self._trained, self._weighted, self._then = objective, trained, weighted, then
        self._recorded = Recorded(self._work, trained.base.device)
        self._inputs, self._captions = list[str](), list[str]()

    def __call__(self, batch: Batch, *more: torch.Tensor) -> torch.Tensor:
        """What `then` makes of them."""
        inputs = self._objective.inputs(self._trained.base.path, batch, self._weighted)
        captions = batch.conditioning.tensors
        self._inputs, self._captions = list(inputs), list(captions)
        return self._recorded(*inputs.values(), *captions.values(), *more)

    def _work(self, *tensors: torch.Tensor) -> torch.Tensor:
        named, captions = len(self._inputs), len(self._inputs) + len(self._captions)
        inputs = dict(zip(self._inputs, tensors[:named], strict=True))
        conditioning = Conditioning(dict(zip(self._captions, tensors[named:captions], strict=True)))
        return self._then(self._objective.losses(self._trained, inputs, conditioning), *tensors[captions:])


def recompute_in_backward(denoiser: ModelMixin) -> None:
    """Gradient checkpointing (Chen et al. 2016), so that it can be recorded: without dropout there is no random state
    to bring back, which would have to be read from the device."""
    has_dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in denoiser.modules())

    def call(module: nn.Module, *given: Any) -> Any:
        return checkpoint(module, *given, use_reentrant=False, preserve_rng_state=has_dropout)

    denoiser.enable_gradient_checkpointing(call)
