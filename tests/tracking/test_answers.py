"""A tracking server that answers any JSON is never taken for one that has the runs, and costs nothing else."""

import json
import os
import sqlite3
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from pipeline.errors import UserError
from pipeline.tracking import sync, track
from pipeline.tracking.store import open_store
from tests.hostile.generators import changed_value, hostile, json_values
from tests.tracking.conftest import section
from tests.tracking.stub import Stub

pytestmark = pytest.mark.usefixtures("at_once")

EXPERIMENT = {"experiment_id": "1", "name": "morphline", "lifecycle_stage": "active", "artifact_location": "/x"}
RUN = {
    "info": {
        "run_id": "a",
        "experiment_id": "1",
        "status": "RUNNING",
        "artifact_uri": "x",
        "lifecycle_stage": "active",
    },
    "data": {"metrics": [], "params": [], "tags": []},
    "inputs": {},
}
ANSWER = {"experiment": EXPERIMENT, "run": RUN, "runs": [RUN], "files": []}


@hostile(40)
@given(answer=json_values | changed_value(ANSWER))
def test_any_answer_leaves_the_runs_to_be_sent(stub: Stub, project: Path, answer: Any) -> None:
    if not (project / "done").exists():
        with track("train@alps", section(None), {"rank": 8}):
            pass
        (project / "done").touch()

    def speak(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(json.dumps(answer).encode())

    stub.speak = speak
    try:
        outcomes = list(sync(section(stub.uri)))
    except UserError:
        return
    finally:
        stub.speak = None
    assert any(outcome.failed for outcome in outcomes)


@pytest.mark.parametrize("kind", ["folder", "pipe", "circle", "text"])
def test_a_database_that_is_none_is_refused_at_once(project: Path, kind: str) -> None:
    path = project / "mlflow.db"
    made = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "circle": lambda: path.symlink_to(path)}
    made.get(kind, lambda: path.write_text("no database\n" * 100))()
    started = time.monotonic()
    with pytest.raises(UserError, match=r"mlflow\.db: cannot be used \((it is a folder|file is not a database)"):
        open_store(section(None))
    assert time.monotonic() - started < 20


def test_a_database_in_use_is_waited_for(migrated: Path) -> None:
    with sqlite3.connect(migrated / "mlflow.db") as other:
        other.execute("BEGIN IMMEDIATE")
        other.rollback()
    assert open_store(section(None)).experiment_id
