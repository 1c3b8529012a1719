"""Work over many pictures in several processes, in order, with memory for a few."""

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
from typing import TypeVar

from tqdm import tqdm

from pipeline.errors import Problem, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4  # items handed out for each process: enough to keep it busy, few enough to hold


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield `function(item)` for each item, in the order of the items, worked out by `workers` processes.

    At most 4 items a process are drawn from `items` before their results are taken, so that memory does not grow with
    their number. `function` must be importable. With one worker all is done in this process.

    Raises:
        UserError: when a process was ended from outside, as the system does when memory runs out.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    # spawn: forking a process that runs threads (torch, tqdm) can deadlock.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare_process)
    waiting: deque[Future[Result]] = deque()
    rest = iter(items)
    try:
        for item in islice(rest, workers * _AHEAD):
            waiting.append(pool.submit(function, item))
        while waiting:
            result = waiting.popleft().result()
            for item in islice(rest, 1):
                waiting.append(pool.submit(function, item))
            yield result
    except BrokenProcessPool:
        fix = "Probably memory ran out: set machine.workers to 1 in params.yaml, or shrink the largest pictures."
        raise UserError(Problem("machine.workers", f"one of {workers} processes was ended from outside", fix)) from None
    finally:
        pool.shutdown(cancel_futures=True)


def with_progress(results: Iterable[Result], total: int, what: str) -> Iterator[Result]:
    """The results as they are, with a progress bar on stderr when that is a terminal."""
    return iter(tqdm(results, total=total, desc=what, unit="picture", file=sys.stderr, disable=None))


def worker_count(wanted: int | None, items: int, alone_below: int) -> int:
    """How many processes to use: `wanted`, or one for each core; only this one for fewer items than `alone_below`,
    because starting others takes longer than so little work."""
    if items < alone_below:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(wanted or cores, items, 61))  # 61: Windows allows no more


def _prepare_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its processes in order
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A killed parent closes nothing, and its processes would wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
