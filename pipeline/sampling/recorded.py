"""Work on a GPU that is recorded once and launched whole from then on (CUDA graphs).

A call of Stable Diffusion's UNet is some 2,000 kernels, which the host launches one by one; of small batches a large
card is done with each long before the next one comes.
"""

from collections.abc import Callable
from functools import cache

import torch
from tqdm import tqdm

Work = Callable[..., torch.Tensor]
"""Tensors on one device to a tensor there."""


SPARE = 1.2
"""A record is made where so many times the memory is left that the first call took: one that runs out of it spoils what
torch knows of its memory."""


class Recorded:
    """A function of tensors that is called many times, with the same shapes: the first time as it is, the second time
    recorded, and launched from that record from then on. On other devices than CUDA, for other shapes or types than the
    first, and where there is no memory for a record, it is called as it is.

    work: must do the same with other values each time, on the device alone: it may neither copy from the host nor look
    at a value. Whatever it finds outside its arguments must stay where it lies in memory, and is read, or added to, at
    each launch. The first call is what may fill caches. A record has the memory of one more call, until this object is
    gone; so work must not lead back to it, or that would be when Python next looks for cycles.
    """

    def __init__(self, work: Work, device: torch.device) -> None:
        self._work = work
        self._kinds: list[tuple[torch.Size, torch.dtype]] | None = None
        self._launch: Callable[..., torch.Tensor] | None = None
        self._took = 0
        self._records = records(device)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """A tensor of its own, which no later call changes."""
        kinds = [(each.shape, each.dtype) for each in inputs]
        if not self._records or self._kinds not in (None, kinds):
            return self._work(*inputs)
        if self._kinds is None:
            self._kinds = kinds
            before = reserved_memory()
            output = self._work(*inputs)
            self._took = reserved_memory(empty=False) - before
            return output
        if self._launch is None:
            self._records = room_for(self._took * SPARE) and self._record(inputs)
        return self._work(*inputs) if self._launch is None else self._launch(*inputs)

    def _record(self, inputs: tuple[torch.Tensor, ...]) -> bool:
        try:
            self._launch = record(self._work, inputs)
        except RuntimeError as error:
            go_on_without(str(error).splitlines()[0])
        return self._launch is not None


def records(device: torch.device) -> bool:
    """Whether work on the device can be recorded."""
    return device.type == "cuda"


def reserved_memory(empty: bool = True) -> int:
    """Bytes of the GPU that torch has. empty: after it has given back what it does not use."""
    if empty:
        torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def room_for(size: float) -> bool:
    """Whether so many bytes are left on the GPU, with what torch has of it and does not use."""
    free, total = torch.cuda.mem_get_info()
    allowed = total * torch.cuda.get_per_process_memory_fraction() - torch.cuda.memory_reserved()
    left = min(free, allowed) + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    if left < size:
        go_on_without("there is no memory for one")
    return left >= size


@cache
def go_on_without(reason: str) -> None:
    """Say once that there is no record."""
    tqdm.write(f"without a CUDA graph, which gives the same and takes longer: {reason}")


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
