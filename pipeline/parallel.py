"""A map over several processes, in order, with memory for a few results."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from operator import length_hint
from typing import TypeVar

from tqdm import tqdm

from pipeline.errors import Problem, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_QUEUED = 4  # items submitted for each process: enough to keep it busy, few enough for memory


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, label: str | None = None
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in the order of the items, computed by `workers` processes.

    At most 4 items a process are drawn from `items` before their results are taken, so that memory does not grow with
    their number. `function` must be importable. One worker is this process. With a `label` there is a progress bar,
    where stderr is a terminal.

    Raises:
        UserError: when a process was killed from outside, as the system does when memory runs out.
    """
    results = map(function, items) if workers <= 1 else _map_in_pool(function, items, workers)
    if label is None:
        return results
    return iter(tqdm(results, label, length_hint(items) or None, unit="picture", file=sys.stderr, disable=None))


def count_workers(requested: int | None, items: int, alone_below: int) -> int:
    """How many processes to use: `requested`, or one for each core; only this one for fewer items than `alone_below`,
    because starting others takes longer than so little work."""
    if items < alone_below:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(requested or cores, items, 61))  # 61: Windows allows no more


def _map_in_pool(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    # spawn: forking a process that runs threads (torch, tqdm) can deadlock.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_prepare_process)
    queue: deque[Future[Result]] = deque()
    remaining = iter(items)
    try:
        queue.extend(pool.submit(function, item) for item in islice(remaining, workers * _QUEUED))
        while queue:
            result = queue.popleft().result()
            queue.extend(pool.submit(function, item) for item in islice(remaining, 1))
            yield result
    except BrokenProcessPool:
        fix = "Probably memory ran out: set machine.workers to 1 in params.yaml, or shrink the largest pictures."
        raise UserError(
            Problem("machine.workers", f"one of {workers} processes was killed from outside", fix)
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops its processes in order
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # A killed parent closes nothing, and its processes would wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
