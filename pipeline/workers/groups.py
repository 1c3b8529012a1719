"""Commands with all that they start, which end together: asked to, and when whoever started them is gone.

DVC leaves a stage running when it is killed, and a killed worker would leave DVC: so each is started by a leash, a
small process whose own child watches a pipe. The pipe closes with the process that holds its other end, however that
ends. Not for Windows.

python -P pipeline/workers/groups.py dvc repro
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

END_SECONDS = 25.0
"""What a group has to end by itself after SIGTERM: a training finishes its step and saves where it was."""
SLACK = 10.0


class Stopped(KeyboardInterrupt):
    """SIGTERM has come. exit_code: as the shell expects it."""

    exit_code = 128 + signal.SIGTERM


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM interrupt the block as Ctrl-C does. Elsewhere than in the main thread it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let neither Ctrl-C nor SIGTERM interrupt the block, which cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def leashed(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    output: IO[bytes] | int | None = None,
    errors: IO[bytes] | int | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command for as long as the block runs; the exit code of what is yielded is the command's.

    output, errors: as subprocess.Popen takes them. All that the command started has ended when the block is left, and
    soon after the end of this process, even by SIGKILL.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, *command], cwd=folder, env=dict(environment),
        stdin=subprocess.PIPE, stdout=output, stderr=errors, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with undisturbed():
            _end(process)


def end_group(process: "subprocess.Popen[bytes]", seconds: float = 10.0) -> None:
    """End a process that was started as the first of its session, and all that it started: SIGTERM, then SIGKILL."""
    for force in (False, True):
        try:
            if os.name == "posix":
                os.killpg(process.pid, signal.SIGKILL if force else signal.SIGTERM)
            elif process.poll() is None:
                process.terminate()
            process.wait(seconds)
        except ProcessLookupError:
            return  # all of the group are gone
        except subprocess.TimeoutExpired:
            continue


def _end(leash: "subprocess.Popen[bytes]") -> None:
    if leash.stdin:
        leash.stdin.close()
    try:
        leash.wait(END_SECONDS + SLACK)
    except subprocess.TimeoutExpired:
        leash.kill()
        leash.wait()


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped("stopped by SIGTERM")


def _hold(command: Sequence[str]) -> int:
    """Be the leash: run the command as the first of a session, and end the session when the pipe on stdin is closed.

    Returns only when all of them are gone: a stage that DVC has left may still be saving where it was.
    """
    started = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    watcher = _watch(started.pid)
    code = started.wait()
    _signal(started.pid, signal.SIGTERM)
    until = time.monotonic() + END_SECONDS
    while _signal(started.pid, 0):
        if time.monotonic() > until:
            _signal(started.pid, signal.SIGKILL)
        time.sleep(0.05)
    os.kill(watcher, signal.SIGKILL)
    return 128 - code if code < 0 else code


def _watch(group: int) -> int:
    """End a group when the pipe on stdin is closed, in a process of its own: who kills the leash as well, as Ray does
    with all children of a worker that it has lost, does not know of that one. Its id."""
    if child := os.fork():
        return child
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (1, 2):  # whoever reads what the command says waits for the end of all that could write it
        os.dup2(nowhere, number)
    os.read(0, 1)
    _signal(group, signal.SIGTERM)
    until = time.monotonic() + END_SECONDS
    while _signal(group, 0) and time.monotonic() < until:
        time.sleep(0.05)
    _signal(group, signal.SIGKILL)
    os._exit(0)


def _signal(group: int, number: int) -> bool:
    """Send a signal to all of a group; whether there was anybody."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(_hold(sys.argv[1:]))
