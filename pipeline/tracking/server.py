"""Where runs are written down: which server or database, how it is opened, how it is looked at."""

import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from pipeline.errors import Problem, UserError
from pipeline.params import TrackingSection
from pipeline.tracking.state import project_top, spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCK_SECONDS = 120
UPLOAD_SECONDS = 60

# A server that hangs may hold up a stage for one request and one retry, then the stage goes on without it.
# What MLflow prints is quieted because progress bars live on stderr; its failures are told in our words.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

# What the dashboard says above the runs; the kind makes it show its pages for training, not those for chat agents.
ABOUT = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "One row for each state of the pipeline, named by its DVC experiment or its commit"
    " (`+`: edited since). Open a row to see its stages. Tick rows and press Compare to see what changed.",
}


@dataclass(frozen=True)
class Server:
    """An opened tracking server or database, and the experiment in it."""

    uri: str
    client: "MlflowClient"
    experiment_id: str


class Run(BaseModel):
    """MLflow's ids of a stage's run and of its parent."""

    model_config = ConfigDict(frozen=True)

    child: str
    parent: str

    def id_of(self, which: Literal["child", "parent"]) -> str:
        """MLflow's id of one of the two."""
        return self.child if which == "child" else self.parent


def tracking_uri(params: TrackingSection) -> str:
    """MLFLOW_TRACKING_URI, else `tracking.uri`, else mlflow.db at the top of the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or params.uri or f"sqlite:///{project_top() / 'mlflow.db'}"


def connect(uri: str) -> "MlflowClient":
    """A client with our patience and without MLflow's chatter. Asks the server for nothing yet."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    _quiet()
    return mlflow.MlflowClient(tracking_uri=uri)


def open_server(uri: str, experiment: str) -> Server:
    """Connect, create the database and the experiment if they are not there.

    Raises whatever MLflow, SQLAlchemy or requests raise when it cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        root = artifact_root(uri)
        folder = re.sub(r"[^\w.-]", "-", experiment)
        try:
            experiment_id = client.create_experiment(experiment, root and f"{root}/{folder}", ABOUT)
        except MlflowException:  # another machine was first
            found = client.get_experiment_by_name(experiment)
            if found is None:
                raise
            experiment_id = found.experiment_id
    elif found.lifecycle_stage == "deleted":
        raise MlflowException(
            f"the experiment {experiment!r} was deleted there: `mlflow experiments restore -x {found.experiment_id}`"
            " brings it back; or choose another name in tracking.experiment"
        )
    else:
        experiment_id = found.experiment_id
    return Server(uri, client, experiment_id)


@contextmanager
def only_one() -> Iterator[None]:
    """One process of this project at a time: two that create a database or a parent run at once do harm."""
    from filelock import FileLock, Timeout

    try:
        spool().mkdir(parents=True, exist_ok=True)
        lock = FileLock(spool() / "lock", timeout=LOCK_SECONDS)
        lock.acquire()
    except (OSError, Timeout):  # a read-only project, or a process stopped in the midst: better unlocked than never
        yield
        return
    try:
        yield
    finally:
        lock.release()


@contextmanager
def patience(uri: str) -> Iterator[None]:
    """Uploads may take longer than the short answers of which a training waits for many."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    if not uri.startswith("http") or os.environ.get(name) != SETTINGS[name]:
        yield
        return
    os.environ[name] = str(UPLOAD_SECONDS)
    try:
        yield
    finally:
        os.environ[name] = SETTINGS[name]


def artifact_root(uri: str) -> str | None:
    """mlartifacts beside a sqlite database, at the top of the project for others; a server has its own."""
    if uri.startswith(("http:", "https:", "databricks")):
        return None
    place = uri.partition("sqlite:///")[2].partition("?")[0]
    folder = Path(place).absolute().parent if place and place != ":memory:" else project_top()
    return (folder / "mlartifacts").as_uri()


def unreachable(uri: str, error: Exception) -> Problem:
    """Why the server cannot be used, and what to do."""
    if uri.startswith("http"):
        fix = "Start that server or correct the address"
    elif uri.startswith("sqlite"):
        fix = "Make that file readable and writable, move it away (a new one is made)"
    else:
        fix = "Make that database reachable or correct the address"
    if "out-of-date" in str(error):
        fix = f"Run `mlflow db upgrade {redacted(uri)}` after saving a copy"
    return Problem(
        f"tracking server {redacted(uri)}",
        f"cannot be used ({why(error)})",
        f"{fix} (MLFLOW_TRACKING_URI in the environment wins over tracking.uri in params.yaml),"
        " or set tracking.required to false to go on without it.",
    )


def now() -> int:
    """Milliseconds since 1970, as MLflow stamps."""
    return time.time_ns() // 1_000_000


def redacted(uri: str) -> str:
    """An address without its password."""
    return re.sub(r"(://[^/@:]*:)[^/@]*@", r"\1***@", uri)


def why(error: BaseException) -> str:
    """What lies at the bottom of an error, in one line of at most 300 characters."""
    if str(error).startswith("API request to"):  # then a chain of five, each telling the whole of the one before
        while error.__cause__ or error.__context__:
            error = error.__cause__ or error.__context__ or error
    text = str(error)
    if isinstance(error, OSError):
        text = error.strerror or text
    lines = text.strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def runs_page(params: TrackingSection) -> str:
    """The address of the table of runs, below the server's own: by itself MLflow opens on its pages for chat agents.

    Raises:
        UserError: the server cannot be reached.
    """
    uri = tracking_uri(params)
    try:
        with only_one():
            server = open_server(uri, params.experiment)
    except Exception as error:
        raise UserError(unreachable(uri, error)) from None
    return f"/#/experiments/{server.experiment_id}/runs?workflowType=machine_learning"


def dashboard_command(params: TrackingSection, port: int = 5000, page: str = "") -> list[str]:
    """The command that shows the runs: MLflow's own server on loopback, or the browser where a server already runs.

    page: what the browser opens there.

    To be run with this process's environment, in which it sets what MLflow's server needs no more than that.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # a second process, for chat agents only
    uri = tracking_uri(params)
    root = artifact_root(uri)
    if root is None:
        return [sys.executable, "-m", "webbrowser", "-t", uri.rstrip("/") + page]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [*command, "--backend-store-uri", uri, "--default-artifact-root", root, "--artifacts-destination", root]


def _quiet() -> None:
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
