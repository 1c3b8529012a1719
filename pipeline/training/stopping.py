"""Ctrl-C and SIGTERM: the step in work is finished and saved before the process goes."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A training that was asked to stop, and has saved where it was. exit_code: as the shell expects it."""

    def __init__(self, number: int, message: str) -> None:
        self.exit_code = 128 + number
        super().__init__(message)


class Stop:
    """Whether a signal has come, and which."""

    def __init__(self) -> None:
        self.flag = False
        self.signal = int(signal.SIGTERM)  # where another process got it

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler: the first signal is noted; a second Ctrl-C interrupts at once."""
        if self.flag and number == self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.flag:
            self.flag, self.signal = True, number


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM instead of dying of them. Elsewhere than in the main thread it does nothing."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
