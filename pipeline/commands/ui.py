"""`morphline ui`: the MLflow dashboard in a local server."""

import socket
import subprocess

from pipeline.errors import Problem, UserError, redacted
from pipeline.params import load_params
from pipeline.tracking import dashboard_command, runs_page, server_uri
from pipeline.workers.groups import Stopped, end_group, stopped_by_sigterm


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
    try:
        with stopped_by_sigterm():
            print(f"Open {address}", flush=True)
            if uri := server_uri(params):
                print(f"The runs of all who share it: {redacted(uri)}", flush=True)
            return server.wait()
    except Stopped as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:
        return 0
    finally:
        end_group(server)


def require_free(port: int, host: str = "127.0.0.1") -> None:
    """Refuse a port that cannot be served on.

    Raises:
        UserError: with the system's reason.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            fix = "Write a name or an address of this machine."
            raise UserError(Problem(f"--host {host}", f"it is not known here ({error.strerror})", fix)) from None
        except OSError as error:
            fix = "Choose another one, or stop what serves there: it may be an older Morphline."
            raise UserError(Problem(f"--port {port}", f"it cannot be served on ({error.strerror})", fix)) from None
