"""Brings the runs of a worker, which are in a database of its own, into the project's.

SQLite is no good on a network file system while stages write to it, and a worker may be on another host: so each has
a database on a local disk, and what is in it comes home in one piece, one worker at a time. As often as one likes: as
on a server, each run has a tag with its first id. The stages of one state join one parent, as if all had run at home.
"""

import logging
import os
import shutil
import sqlite3
from contextlib import ExitStack, chdir, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.outputs import atomic_file
from pipeline.sections import TrackingSection
from pipeline.tracking.connection import connect, unusable, why
from pipeline.tracking.mirror import HOME, Mirror
from pipeline.tracking.runs import OPEN, PARENT, PLACE, STATE, close_dead, open_parent, rest
from pipeline.tracking.store import FOLDER, Store, database_of, open_store, server_uri

if TYPE_CHECKING:
    from mlflow.entities import Run

KEPT = {"alembic_version": "", "workspaces": "", "experiments": " WHERE experiment_id = 0"}
"""Rows of a new database: MLflow takes seconds to make one, and a worker starts with these of the project's."""

log = logging.getLogger(__name__)


def worker_database(params: TrackingSection, database: Path) -> dict[str, str]:
    """Make an empty database for a worker; the environment in which its stages track their runs there, and only there.

    Raises:
        UserError: the project's database cannot be used, and `tracking.required` is true.
    """
    here = database_of(params)
    try:
        if not here.is_file():
            open_store(params)
        _make_empty(here, database)
    except (UserError, sqlite3.Error) as error:
        told = error if isinstance(error, UserError) else UserError(unusable(f"sqlite:///{here}", error))
        if params.required:
            raise told from None
        log.warning("Nothing is tracked at home: %s", told)
    environment = {name: text for name, text in os.environ.items() if name != FOLDER}
    return {**environment, "MLFLOW_TRACKING_URI": f"sqlite:///{database}"}


def bring_home(params: TrackingSection, database: Path) -> bool:
    """Bring all runs of a worker's database home, and on to the server where one is named. Run it in the project.

    Never raises; False: something is left, which was said, and may be brought later.
    """
    if not _has_runs(database):
        return True
    try:
        home = open_store(params)
        worker = Store(database, connect(f"sqlite:///{database}"), "")
        experiment = worker.client.get_experiment_by_name(params.experiment)
        worker = replace(worker, experiment_id=experiment.experiment_id)
        with home.lock("homecoming"):
            brought = _bring(params, worker, home)
    except Exception as error:
        log.warning("The runs of a worker stay in %s: %s: %s", database, type(error).__name__, why(error))
        return False
    if uri := server_uri(params):
        mirror = Mirror(home, uri)
        for child, parent in brought:
            mirror.report(parent, child, last=True)
    return True


def _make_empty(like: Path, database: Path) -> None:
    with closing(sqlite3.connect(like)) as home, closing(sqlite3.connect(database)) as new, new:
        tables = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
        for (statement,) in home.execute(tables):
            new.execute(statement)
        for table, which in KEPT.items():
            for row in home.execute(f"SELECT * FROM {table}{which}"):
                new.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _has_runs(database: Path) -> bool:
    """Without MLflow, whose import takes seconds."""
    if not database.exists():
        return False
    with closing(sqlite3.connect(database)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'runs'").fetchall()
        return bool(tables and connection.execute("SELECT COUNT(*) FROM runs").fetchone()[0])


def _bring(params: TrackingSection, worker: Store, home: Store) -> list[tuple[str, str]]:
    """Ids at home of the runs and of their parents."""
    runs = worker.search(f"tags.`{STATE}` != ''")
    mirror = Mirror(worker, f"sqlite:///{home.database}", HOME)
    mirror.open(params.experiment)
    brought = []
    for above in [run for run in runs if PARENT not in run.data.tags]:
        close_dead(worker, above.info.run_id)
        tags = {key: text for key, text in above.data.tags.items() if key not in (OPEN, PLACE)}
        with home.lock("database"):
            parent = open_parent(home, above.data.tags[STATE], above.info.run_name, tags, None)
        mirror.parents[above.info.run_id] = parent
        for run in [run for run in reversed(runs) if run.data.tags.get(PARENT) == above.info.run_id]:
            with ExitStack() as places:
                places.enter_context(chdir(home.database.parent))  # locations of artifacts are relative to it
                mirror.bring(run.info.run_id)
                there = mirror.find(run)
            if mirror.refused or there is None:
                raise ValueError(f"refused: {', '.join(mirror.refused) or run.info.run_name}")
            brought.append((str(there.info.run_id), parent))
        with home.lock("database"):
            _join(worker, above, home, parent)
            rest(home, parent, worker.client.get_run(above.info.run_id).info.status)
    return brought


def _join(worker: Store, run: "Run", home: Store, parent: str) -> None:
    """Let a parent at home have what the worker's parent of the same state shows."""
    run = worker.client.get_run(run.info.run_id)
    there = home.client.get_run(parent)
    home.log_params(parent, {key: text for key, text in run.data.params.items() if key not in there.data.params})
    if run.data._metric_objs:  # single figures, of which MLflow takes 1000 at once
        for start in range(0, len(run.data._metric_objs), 1000):
            home.client.log_batch(parent, metrics=run.data._metric_objs[start : start + 1000])
    known = {(one.dataset.name, one.dataset.digest) for one in there.inputs.dataset_inputs}
    lacking = [one for one in run.inputs.dataset_inputs if (one.dataset.name, one.dataset.digest) not in known]
    if lacking:
        home.client.log_inputs(parent, lacking)
    folder = worker.place(run.info.artifact_uri)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and ".partial" not in path.name):
        with atomic_file(home.place(there.info.artifact_uri) / path.relative_to(folder)) as partial:
            shutil.copyfile(path, partial)
