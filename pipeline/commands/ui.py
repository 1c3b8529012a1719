"""`morphline ui`: the MLflow dashboard in a local server."""

import subprocess

from pipeline.params import load_params
from pipeline.tracking import dashboard_command, runs_page


def run(port: int) -> int:
    """Serve the dashboard on `port` until Ctrl-C; the server's exit code."""
    params = load_params().tracking
    page = runs_page(params)
    command = dashboard_command(params, port, page)
    if "--port" in command:
        print(f"Open http://127.0.0.1:{port}{page}", flush=True)
    try:
        return subprocess.call(command)
    except KeyboardInterrupt:
        return 0
