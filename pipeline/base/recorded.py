"""Work on a GPU that is recorded once and launched whole from then on (CUDA graphs).

A call of Stable Diffusion's UNet is some 2,000 kernels, which the host launches one by one; of small batches a large
card is done with each long before the next one comes.
"""

from collections.abc import Callable

import torch
from tqdm import tqdm

Work = Callable[..., torch.Tensor]
"""Tensors on one device to a tensor there."""


class Recorded:
    """A function of tensors that is called many times, with the same shapes: the first time as it is, the second time
    recorded, and launched from that record from then on. On other devices than CUDA, and for other shapes or types than
    the first, it is called as it is.

    work: must do the same with other values each time, on the device alone: it may neither copy from the host nor look
    at a value. Whatever it finds outside its arguments must stay where it lies in memory, and is read, or added to, at
    each launch. The first call is what may fill caches. A record takes the memory of one more call, until this object
    is gone.
    """

    def __init__(self, work: Work, device: torch.device) -> None:
        self._work = work
        self._kinds: list[tuple[torch.Size, torch.dtype]] | None = None
        self._launch: Callable[..., torch.Tensor] | None = None
        self._records = records(device)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """A tensor of its own, which no later call changes."""
        kinds = [(each.shape, each.dtype) for each in inputs]
        if not self._records or self._kinds not in (None, kinds):
            return self._work(*inputs)
        if self._kinds is None:
            self._kinds = kinds
            return self._work(*inputs)
        if self._launch is None:
            try:
                self._launch = record(self._work, inputs)
            except RuntimeError as error:  # memory for one, which the call as it is may have
                self._records = False
                reason = str(error).splitlines()[0]
                tqdm.write(f"goes on without a CUDA graph, which is slower but gives the same: {reason}")
                return self._work(*inputs)
        return self._launch(*inputs)


def records(device: torch.device) -> bool:
    """Whether work on the device can be recorded."""
    return device.type == "cuda"


def record(work: Work, inputs: tuple[torch.Tensor, ...]) -> Callable[..., torch.Tensor]:
    """Record the work, without doing it; what is given back does it, with other values of the inputs.

    Raises:
        RuntimeError: when it cannot be recorded, or memory runs out (torch.OutOfMemoryError).
    """
    own, graph, before = [each.clone() for each in inputs], torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # Only what this thread does can spoil the record: metrics of the machine are read in another.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            output = work(*own)
    finally:
        torch.cuda.set_stream(before)  # a failed record leaves its own

    def launch(*given: torch.Tensor) -> torch.Tensor:
        for tensor, value in zip(own, given, strict=True):
            tensor.copy_(value)
        graph.replay()
        return output.clone()

    return launch
