"""The MLflow dashboard of this machine, which shows the project's database."""

import json
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from pipeline.sections import TrackingSection
from pipeline.tracking.runs import PARENT, STATE
from pipeline.tracking.store import ARTIFACTS, database_of, open_store

COLUMNS = 7


def runs_page(params: TrackingSection) -> str:
    """The address of the table of runs, below the server's own: by itself MLflow opens on its pages for chat agents,
    and shows no figure. The columns are those of the newest state that has any, as a view that MLflow calls shared.

    Raises:
        UserError: the database cannot be opened.
    """
    store = open_store(params)
    page = f"/#/experiments/{store.experiment_id}/runs?workflowType=machine_learning"
    figures: dict[str, float] = next((run.data.metrics for run in store.search(f"tags.`{STATE}` != ''")
                    if PARENT not in run.data.tags and run.data.metrics), {})  # fmt: skip
    if not figures:
        return page
    ordered = sorted(figures, key=lambda name: "." in name.partition("/")[0])[:COLUMNS]  # the report's first
    view = {"selectedColumns": [f"metrics.`{name}`" for name in ordered]}
    store.client.set_experiment_tag(store.experiment_id, "mlflow.sharedViewState.morphline", json.dumps(view))
    return f"{page}&viewStateShareKey=morphline"


def run_page(params: TrackingSection, stage: str) -> str | None:
    """The address of a stage's newest run, below the server's own; None where there is none.

    Asks the database itself, without MLflow, which takes seconds to import.
    """
    database = database_of(params)
    if not database.is_file():
        return None
    query = (
        "SELECT experiment_id, run_uuid FROM runs WHERE name = ? AND lifecycle_stage = 'active' "
        "ORDER BY start_time DESC LIMIT 1"
    )
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=2)) as connection:
            row = connection.execute(query, [stage]).fetchone()
    except sqlite3.Error:  # no database of MLflow's yet, or one that is being migrated
        return None
    return f"/#/experiments/{row[0]}/runs/{row[1]}" if row else None


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
