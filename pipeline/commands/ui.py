"""`morphline ui`: the MLflow dashboard in a local server."""

import subprocess

from pipeline.params import load_params
from pipeline.tracking import dashboard_command, redacted, runs_page, server_uri


def run(port: int) -> int:
    """Serve the dashboard on `port` until Ctrl-C; the server's exit code."""
    params = load_params().tracking
    command, folder = dashboard_command(params, port)
    print(f"Open http://127.0.0.1:{port}{runs_page(params)}", flush=True)
    if uri := server_uri(params):
        print(f"The runs of all who share it: {redacted(uri)}", flush=True)
    try:
        return subprocess.call(command, cwd=folder)
    except KeyboardInterrupt:
        return 0
