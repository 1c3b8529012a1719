"""MLflow's dashboard beside the studio: `morphline ui`, started when somebody first asks for a run there."""

import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress

from pipeline.errors import Problem, UserError

PATIENCE = 90.0  # seconds that MLflow may take to start
END_SECONDS = 15.0


class Dashboard:
    """A process of `morphline ui` at a free port of this machine, from the first question to the studio's end."""

    def __init__(self, morphline: Sequence[str]) -> None:
        self._morphline = list(morphline)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._starting = threading.Lock()

    def address(self) -> str:
        """Where it is, once it answers.

        Raises:
            UserError: where it does not start.
        """
        with self._starting:
            if self._process is None or self._process.poll() is not None:
                self._port = _free_port()
                command = [*self._morphline, "ui", "--port", str(self._port)]
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )  # fmt: skip
            address, until = f"http://127.0.0.1:{self._port}", time.monotonic() + PATIENCE
            while not _answers(address):
                if self._process.poll() is not None or time.monotonic() > until:
                    self.stop()
                    fix = "Run `morphline ui`, which says why."
                    raise UserError(Problem("MLflow's dashboard", "it does not start", fix))
                time.sleep(0.2)
            return address

    def stop(self) -> None:
        """End it, if it was started."""
        if self._process is None:
            return
        for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
            with suppress(ProcessLookupError):
                if os.name == "posix":
                    os.kill(self._process.pid, number)
                else:
                    self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
                return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
