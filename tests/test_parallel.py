"""A map over processes: in order, with bounded memory, and ended as a user would have it."""

import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import psutil
import pytest

from pipeline.errors import UserError
from pipeline.parallel import count_workers, parallel_map
from tests.project import ROOT

# Slower than its processes, which therefore wait for work.
SCRIPT = """\
import time
from pipeline.parallel import parallel_map
from tests.test_parallel import work

if __name__ == "__main__":
    for process in parallel_map(work, range(1000), workers=2):
        print(process, flush=True)
        time.sleep(0.5)
"""


def work(number: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail_at_three(number: int) -> float:
    return 1 / (number - 3)


def test_only_a_few_items_are_held_at_once() -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for number in range(200):
            drawn += 1
            yield number

    for taken, result in enumerate(parallel_map(operator.neg, items(), workers=2)):
        assert result == -taken
        assert drawn - taken <= 9  # four for each process, and the one in hand
    assert drawn == 200


def test_one_worker_is_this_process() -> None:
    assert list(parallel_map(work, range(2), workers=1)) == [os.getpid()] * 2


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_is_not_for_files(workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(parallel_map(operator.neg, range(3), workers, label="negate")) == [0, -1, -2]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_where_its_result_would_be(workers: int) -> None:
    results = parallel_map(fail_at_three, range(9), workers)
    assert [next(results) for _ in range(3)] == [1 / -3, 1 / -2, 1 / -1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_killed_process_is_a_problem_of_memory() -> None:
    with pytest.raises(UserError, match="one of 2 processes was killed.*set machine.workers to 1"):
        list(parallel_map(die_at_three, range(9), workers=2))


def started() -> tuple[subprocess.Popen[str], set[psutil.Process]]:
    """A program in the middle of a map over two processes, and those processes."""
    program = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        start_new_session=True,
        # Shells start what runs in the background with SIGINT ignored, and processes inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout
    workers: set[psutil.Process] = set()
    while len(workers) < 2:
        workers.add(psutil.Process(int(program.stdout.readline())))
    return program, workers


def have_ended(processes: set[psutil.Process]) -> bool:
    deadline = time.monotonic() + 20
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_killed_program_leaves_no_processes() -> None:
    program, workers = started()
    program.kill()
    assert have_ended(workers)
    program.communicate()


def test_ctrl_c_ends_the_program_and_its_processes_with_one_traceback() -> None:
    program, workers = started()
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does: all of them get it
    _, errors = program.communicate(timeout=20)
    assert program.returncode and errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt")
    assert have_ended(workers)


def test_few_items_are_not_worth_more_processes() -> None:
    assert count_workers(8, items=15, alone_below=16) == 1
    assert count_workers(8, items=16, alone_below=16) == 8
    assert count_workers(8, items=4, alone_below=1) == 4
    assert count_workers(None, items=1000, alone_below=1) >= 1
