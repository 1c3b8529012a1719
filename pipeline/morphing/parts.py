"""Work cut into parts that fit into memory."""

from collections.abc import Callable
from typing import TypeVar

import torch
from tqdm import tqdm

Done = TypeVar("Done")


def in_parts(count: int, room: int | None, work: Callable[[slice], Done]) -> list[Done]:
    """`work` on slices of `count` items, at most `room` at once (None: all), and fewer once memory has run out.

    Raises:
        torch.OutOfMemoryError: when not even one item fits.
    """
    size, first, done = max(1, room or count), 0, []
    while first < count:
        part = slice(first, min(first + size, count))
        try:
            done.append(work(part))
        except torch.OutOfMemoryError:
            length = part.stop - part.start
            if length == 1:
                raise
            size = (length + 1) // 2
            tqdm.write(f"{length} at once do not fit into memory: on with {size} (machine.batch)")
            torch.cuda.empty_cache()
            continue
        first = part.stop
    return done
