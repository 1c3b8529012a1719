"""The project's own MLflow database, to which every run is written first, and the artifacts beside it.

Locations of artifacts are kept relative to the database's folder, so that a copied or moved project writes into its new
place. Locks lie in `.work/tracking` there; they go with their process, however that ends.
"""

import errno
import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.sections import TrackingSection
from pipeline.state import project_top
from pipeline.tracking.connection import connect, experiment_of, unusable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FOLDER = "MORPHLINE_TRACKING_FOLDER"  # in the environment: where the database lies, if not at the top of the project
ARTIFACTS = "mlartifacts"
LOCK_SECONDS = 120.0
NETWORK = ("nfs", "cifs", "smb", "afs", "9p", "lustre", "gpfs", "beegfs", "ceph", "gluster", "fuse.sshfs")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """An opened database, and the experiment in it that new runs go to."""

    database: Path
    client: "MlflowClient"
    experiment_id: str

    def place(self, location: str) -> Path:
        """Where the artifacts of a run or model lie."""
        from mlflow.utils.file_utils import local_file_uri_to_path

        return self.database.parent / local_file_uri_to_path(location)

    def search(self, condition: str) -> "list[Run]":
        """The runs of the experiment for which that holds, newest first."""
        return search_runs(self.client, self.experiment_id, condition)

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Any number of params."""
        from mlflow.entities import Param

        items = [Param(key, text) for key, text in params.items()]
        for start in range(0, len(items), 100):  # as many as MLflow takes at once
            self.client.log_batch(run_id, params=items[start : start + 100])

    def query(self, query: str, *values: object) -> list[Any]:
        """Rows of the database that MLflow's own client does not give."""
        with closing(sqlite3.connect(self.database, timeout=LOCK_SECONDS)) as connection:
            return connection.execute(query, values).fetchall()

    def lock(self, name: str, wait: float = LOCK_SECONDS) -> AbstractContextManager[bool | None]:
        """See the function `lock`."""
        return lock(self.database.parent, name, wait)


def server_uri(params: TrackingSection) -> str | None:
    """The server that MLFLOW_TRACKING_URI or `tracking.uri` names; None where that is a file, or nothing."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or params.uri
    return uri if uri and not uri.startswith("sqlite:") else None


def database_of(params: TrackingSection) -> Path:
    """The project's database: where a `sqlite:` address, MORPHLINE_TRACKING_FOLDER, or the project's top has it."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or params.uri or ""
    if uri.startswith("sqlite:"):
        return Path(uri.partition("sqlite:///")[2].partition("?")[0]).absolute()
    return Path(os.environ.get(FOLDER) or project_top()).absolute() / "mlflow.db"


def open_store(params: TrackingSection) -> Store:
    """Open the project's database, made and mended if need be.

    Raises:
        UserError: when that is not possible.
    """
    database = database_of(params)
    location = ARTIFACTS + "/" + re.sub(r"[^-.\w]", "-", params.experiment)
    try:
        with lock(database.parent, "database"):
            _require_database(database)
            client = connect(f"sqlite:///{database}")
            experiment = experiment_of(client, params.experiment, str(database.parent / location))
            _make_relative(database, experiment.experiment_id, location)
    except Exception as error:
        raise UserError(unusable(f"sqlite:///{database}", error)) from None
    return Store(database, client, experiment.experiment_id)


def _require_database(path: Path) -> None:
    """Raises OSError or sqlite3.Error at once where MLflow would try for two minutes: for a folder, a file of another
    kind, a full or read-only disk."""
    if os.path.lexists(path) and not path.is_file():
        raise OSError(errno.EINVAL, "it is a folder, a pipe, or a link to nothing")
    with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
        connection.execute("PRAGMA schema_version").fetchone()
    with tempfile.TemporaryFile(dir=path.parent) as room:
        room.write(bytes(65536))


@contextmanager
def lock(folder: Path, name: str, wait: float = LOCK_SECONDS) -> Iterator[bool | None]:
    """Hold a lock while the block runs. Yields False where another process has it for all of `wait` seconds, and None
    where the file system has no locks: better unlocked than never."""
    from filelock import FileLock, Timeout

    file_lock = FileLock(folder / ".work" / "tracking" / f"{name}.lock", timeout=wait)
    locked: bool | None = True
    try:
        Path(file_lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        file_lock.acquire()
    except Timeout:
        locked = False
    except (OSError, NotImplementedError) as error:
        log.warning("No lock for %s (%s): two processes at once may do the same twice", file_lock.lock_file, error)
        locked = None
    try:
        yield locked
    finally:
        if locked and os.name == "posix":  # filelock looks whether what it locked is still there
            Path(file_lock.lock_file).unlink(missing_ok=True)
        file_lock.release()


def search_runs(client: "MlflowClient", experiment_id: str, condition: str, deleted: bool = False) -> "list[Run]":
    """The runs for which that holds, newest first. deleted: those too that somebody has deleted."""
    from mlflow.entities import ViewType

    view, order = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY, ["attributes.start_time DESC"]
    page = client.search_runs([experiment_id], condition, view, 1000, order)
    found = list(page)
    while page and page.token:
        page = client.search_runs([experiment_id], condition, view, 1000, order, page.token)
        found += page
    return found


def network_place(params: TrackingSection) -> str:
    """The kind of network file system that the project's database lies on; empty on a local disk."""
    import psutil

    there = database_of(params).parent.resolve()
    above = [disk for disk in psutil.disk_partitions(all=True) if there.is_relative_to(disk.mountpoint)]
    kind = max(above, key=lambda disk: len(disk.mountpoint)).fstype.lower() if above else ""
    return kind if kind.startswith(NETWORK) else ""


def _make_relative(database: Path, experiment_id: str, location: str) -> None:
    """Relative locations of artifacts, which MLflow takes but makes absolute when it creates an experiment.

    New runs and models inherit their experiment's. Those of old runs are mended too, unless their files are only at the
    old place. Raises ValueError where the experiment's artifacts are kept elsewhere on purpose.
    """
    from mlflow.utils.file_utils import local_file_uri_to_path

    columns = {"experiments": "artifact_location", "runs": "artifact_uri", "logged_models": "artifact_location"}
    with closing(sqlite3.connect(database, timeout=LOCK_SECONDS)) as connection, connection:
        for table, column in columns.items():
            query = f"SELECT rowid, {column} FROM {table} WHERE {column} LIKE '%/{ARTIFACTS}/%'"
            for row, old in connection.execute(query).fetchall():
                place = Path(local_file_uri_to_path(old))
                new = f"{ARTIFACTS}/{place.as_posix().rpartition(f'/{ARTIFACTS}/')[2]}"
                if table == "experiments" or (database.parent / new).exists() or not place.exists():
                    connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (new, row))
        query = "SELECT artifact_location FROM experiments WHERE experiment_id = ?"
        (there,) = connection.execute(query, (experiment_id,)).fetchone()
        if re.match(r"(?!file:)\w\w+:", there):
            raise ValueError(f"its experiment keeps artifacts at {there}: choose another name in tracking.experiment")
        if not there.startswith(f"{ARTIFACTS}/"):
            query = "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?"
            connection.execute(query, (location, experiment_id))
