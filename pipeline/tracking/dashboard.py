"""The MLflow dashboard of this machine, which shows the project's database."""

import os
import sys
from pathlib import Path

from pipeline.params import TrackingSection
from pipeline.tracking.store import ARTIFACTS, database_of, open_store


def runs_page(params: TrackingSection) -> str:
    """The address of the table of runs, below the server's own: by itself MLflow opens on its pages for chat agents.

    Raises:
        UserError: the database cannot be opened.
    """
    return f"/#/experiments/{open_store(params).experiment_id}/runs?workflowType=machine_learning"


def dashboard_command(params: TrackingSection, port: int = 5000) -> tuple[list[str], Path]:
    """The command that shows the runs by MLflow's own server on loopback, and the folder to start it in.

    To be run with this process's environment, in which it sets what MLflow's server needs no more than that.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # a second process, for chat agents only
    database = database_of(params)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    roots = ["--default-artifact-root", ARTIFACTS, "--artifacts-destination", ARTIFACTS]
    return [*command, "--backend-store-uri", f"sqlite:///{database}", *roots], database.parent
