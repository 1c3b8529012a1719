"""Work cut into chunks that fit into memory, and dealt out to the processes that share it.

Several processes give what one gives: chunks are cut first and dealt out then, each process gets the results of all,
in order, and what is decided by a figure is decided by the main process alone. What they send each other goes through
the host's memory (gloo), on a GPU too: little data, no memory of the device, and a process that is gone is noticed.
"""

import atexit
import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import distributed
from tqdm import tqdm

from pipeline.errors import Problem, UserError
from pipeline.processes.joining import LONGEST_WAIT
from pipeline.processes.memory import free_cached_memory, ran_out_of_memory

Item = TypeVar("Item")
Result = TypeVar("Result")

REPORT_TIME = 60.0
"""Seconds for the main process to report an error and end, which ends the others too; then they go by themselves."""
GONE_TIME = 10.0
"""Seconds for a launcher to end its processes after the death of one."""


def in_chunks(
    count: int, most: int | None, work: Callable[[slice], Result], accelerator: Accelerator | None = None
) -> list[Result]:
    """`work` on slices of `count` items, at most `most` at once, and fewer once memory has run out; results in order.

    most: None for all at once, or, where processes share the work, for an even share. accelerator: of the processes
    that share it, which must all call this alike; they get the results of all, with tensors on the CPU.

    Raises:
        RuntimeError: when not even one item fits (on CUDA torch.OutOfMemoryError).
        Exception: any other of `work`. That of another process is raised in the main one, and the others end silently.
    """
    if accelerator is None or accelerator.num_processes == 1 or count == 0:
        return _in_turn(0, count, count if most is None else max(1, most), work)
    size = -(-count // accelerator.num_processes) if most is None else max(1, most)

    def own_share() -> list[Result]:
        with accelerator.split_between_processes(list(range(0, count, size))) as first:
            return _in_turn(first[0], min(first[-1] + size, count), size, work) if first else []

    return [result for share in _from_all(own_share, accelerator) for result in share]


def one_each(
    items: Sequence[Item], work: Callable[[Item], Result], accelerator: Accelerator | None = None
) -> Iterator[Result]:
    """`work` on each item, in order, as they are asked for: memory holds as many results as there are processes."""
    together = 1 if accelerator is None else accelerator.num_processes
    for first in range(0, len(items), together):
        some = items[first : first + together]

        def one(chunk: slice, some: Sequence[Item] = some) -> Result:
            return work(some[chunk.start])

        yield from in_chunks(len(some), 1, one, accelerator)


def decided(choose: Callable[[], Result], accelerator: Accelerator | None = None) -> Result:
    """What `choose` gives in the main process, in all: two processors may find one distance a last digit apart."""
    if accelerator is None or accelerator.num_processes == 1:
        return choose()
    box: list[Any] = [choose() if accelerator.is_main_process else None]
    _together(lambda: distributed.broadcast_object_list(box, src=0, group=_host_group()), accelerator)
    return box[0]


def _in_turn(first: int, last: int, size: int, work: Callable[[slice], Result]) -> list[Result]:
    """The items from `first` to before `last`."""
    results = []
    while first < last:
        chunk = slice(first, min(first + size, last))
        try:
            results.append(work(chunk))
        except RuntimeError as error:
            length = chunk.stop - chunk.start
            if length == 1 or not ran_out_of_memory(error):
                raise
            size = (length + 1) // 2
            tqdm.write(f"{length} at once do not fit into memory: continuing with {size} (machine.batch)")
            free_cached_memory()
            continue
        first = chunk.stop
    return results


def _from_all(work: Callable[[], Result], accelerator: Accelerator) -> list[Result]:
    """What `work` gives in each process, in all of them, in the order of the processes."""
    result, error = None, None
    _host_group()
    try:
        result = send_to_device(work(), torch.device("cpu"))
    except Exception as raised:  # the others must hear of it: they would wait for ever
        error = raised
    received: list[Any] = [None] * accelerator.num_processes
    sent = (result, _sendable(error, accelerator))
    _together(lambda: distributed.all_gather_object(received, sent, group=_host_group()), accelerator)
    if failures := [failure for _, failure in received if failure is not None]:
        if accelerator.is_main_process:
            raise error or failures[0]
        _wait_to_be_ended()
    return [result for result, _ in received]


def _sendable(error: Exception | None, accelerator: Accelerator) -> Exception | None:
    """An error as it can be raised in another process, with a note of where it was raised first."""
    if error is None or isinstance(error, UserError):
        return error
    try:
        sent: Exception = pickle.loads(pickle.dumps(error))
    except Exception:  # a class that cannot be made again from its arguments
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    lines = "".join(traceback.format_tb(error.__traceback__))
    sent.add_note(f"in process {accelerator.process_index} of {accelerator.num_processes}, counted from 0:\n{lines}")
    return sent


def _together(exchange: Callable[[], None], accelerator: Accelerator) -> None:
    """What all processes do at one time; where one of them is gone, the others end."""
    try:
        exchange()
    except RuntimeError as error:
        found = str(error)
    else:
        return
    if not accelerator.is_main_process:
        _wait_to_be_ended()
    # Where a process of this machine has died, it or its launcher says so, and the launcher ends this one meanwhile.
    time.sleep(GONE_TIME)
    what = f"one of {accelerator.num_processes} processes that share the work has ended, or cannot be reached ({found})"
    raise UserError(Problem("machine.processes", what, "See what it says on its machine."))


def _wait_to_be_ended() -> NoReturn:
    time.sleep(REPORT_TIME)
    raise SystemExit(1)


@cache
def _host_group() -> distributed.ProcessGroup:
    """Made before there is any work, while all are there: who waits for others to join it hears no signals."""
    atexit.register(_leave_host_group)
    return distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)


def _leave_host_group() -> None:
    """While Python is whole: gloo's threads that let go of tensors later than that crash."""
    distributed.destroy_process_group(_host_group())
    _host_group.cache_clear()
