"""Memory that runs out."""

import torch
from accelerate.utils.memory import clear_device_cache

_NO_ROOM = ("MPS backend out of memory", "DefaultCPUAllocator: can't allocate memory")


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device had no room for what was asked. Only CUDA's has a class of its own; others say it in words."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(words in said for words in _NO_ROOM)


def free_cached_memory() -> None:
    """Give back what torch keeps of an accelerator's memory for later."""
    clear_device_cache()
