"""Work cut into chunks that fit into memory."""

from collections.abc import Callable
from typing import TypeVar

import torch
from tqdm import tqdm

Result = TypeVar("Result")


def in_chunks(count: int, most: int | None, work: Callable[[slice], Result]) -> list[Result]:
    """`work` on slices of `count` items, at most `most` at once (None: all), and fewer once memory has run out.

    Raises:
        torch.OutOfMemoryError: when not even one item fits.
    """
    size, first, results = count if most is None else max(1, most), 0, []
    while first < count:
        chunk = slice(first, min(first + size, count))
        try:
            results.append(work(chunk))
        except torch.OutOfMemoryError:
            length = chunk.stop - chunk.start
            if length == 1:
                raise
            size = (length + 1) // 2
            tqdm.write(f"{length} at once do not fit into memory: continuing with {size} (machine.batch)")
            torch.cuda.empty_cache()
            continue
        first = chunk.stop
    return results
