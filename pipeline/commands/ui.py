"""`morphline ui`: the MLflow dashboard in a local server."""

import os
import signal
import socket
import subprocess
from types import FrameType

from pipeline.errors import Problem, UserError, redacted
from pipeline.params import load_params
from pipeline.tracking import dashboard_command, runs_page, server_uri

END_SECONDS = 10.0


def run(port: int) -> int:
    """Serve the dashboard on `port` until Ctrl-C or SIGTERM, and leave nothing running; the exit code.

    Raises:
        UserError: when the port is taken, or the database cannot be opened.
    """
    params = load_params().tracking
    require_free(port)
    command, folder = dashboard_command(params, port)
    address = f"http://127.0.0.1:{port}{runs_page(params)}"
    # A group of its own: MLflow serves in a process that it starts, and would leave behind.
    server = subprocess.Popen(command, cwd=folder, start_new_session=True)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        print(f"Open {address}", flush=True)
        if uri := server_uri(params):
            print(f"The runs of all who share it: {redacted(uri)}", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    except _Terminated:
        return 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
        _end(server)


class _Terminated(Exception):
    """SIGTERM."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _end(server: subprocess.Popen[bytes]) -> None:
    for force in (False, True):
        try:
            if os.name == "posix":
                os.killpg(server.pid, signal.SIGKILL if force else signal.SIGTERM)
            elif server.poll() is None:
                server.terminate()
            server.wait(END_SECONDS)
        except ProcessLookupError:
            return  # all of the group are gone
        except subprocess.TimeoutExpired:
            continue


def require_free(port: int, host: str = "127.0.0.1") -> None:
    """Refuse a port that cannot be served on.

    Raises:
        UserError: with the system's reason.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            fix = "Choose another one, or stop what serves there: it may be an older Morphline."
            raise UserError(Problem(f"--port {port}", f"it cannot be served on ({error.strerror})", fix)) from None
