"""How MLflow is reached: with little patience, with bounded answers, and with its failures in plain words."""

import functools
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.errors import Problem, printable, redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

ANSWER_SECONDS, LONGEST_ANSWER = 30.0, 32 * 1024 * 1024
SLOWEST = 20_000.0  # bytes a second that a server must take of what it is sent, beyond the time for an answer

# A server that hangs may hold up a stage for one request, then the stage goes on without it. No hidden retries: a
# request that timed out may have arrived, so it is looked for before it is made again.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
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


def connect(uri: str) -> "MlflowClient":
    """A client with our patience and without MLflow's chatter. Asks the server for nothing yet."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    _bound_answers()
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return mlflow.MlflowClient(tracking_uri=uri)


def experiment_of(client: "MlflowClient", name: str, location: str | None) -> "Experiment":
    """The experiment of that name, made if it is not there. location: of its artifacts; None: the server's own.

    Raises whatever MLflow, SQLAlchemy or requests raise when it cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.get_experiment(client.create_experiment(name, location, ABOUT))
        except MlflowException:  # another machine may have been first
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if not found.experiment_id:
        raise ConnectionError("that is no answer of MLflow's")
    if found.lifecycle_stage == "deleted":
        raise MlflowException(
            f"the experiment {name!r} was deleted there: `mlflow experiments restore -x {found.experiment_id}`"
            " brings it back; or choose another name in tracking.experiment"
        )
    return found


def is_refusal(error: Exception) -> bool:
    """Whether there was an answer, and sending the same again would be answered the same."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())
    elif isinstance(error, RequestException):
        status = error.response.status_code if error.response is not None else 0
    else:  # a file of ours that cannot be read
        return isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError)
    return 400 <= status < 500 and status not in (401, 403, 408, 429)


def lacks_scheme(uri: str) -> bool:
    """Whether it is a host and its port alone, of which MLflow makes a file, or nothing."""
    return bool(re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri))


def unusable(uri: str, error: Exception) -> Problem:
    """Why a server or database cannot be used, and what to do."""
    local = uri.startswith("sqlite")
    fix = "Make that file readable and writable, or move it away (a new one is made)" if local else (
        "Start that server or correct the address"
    )  # fmt: skip
    if local and re.search("disk is full|disk I/O error|No space left|File too large|[Qq]uota", str(error)):
        fix = "Make room there"  # an I/O error is SQLite's word for a file that may not grow
    if "out-of-date" in str(error):
        fix = f"Run `mlflow db upgrade {redacted(uri)}` after saving a copy"
    if lacks_scheme(uri):
        fix = f"Write http://{uri}"
    return Problem(
        f"tracking {'database' if local else 'server'} {redacted(uri)}",
        f"cannot be used ({why(error)})",
        f"{fix} (MLFLOW_TRACKING_URI in the environment wins over tracking.uri in params.yaml),"
        " or set tracking.required to false to go on without it.",
    )


def now() -> int:
    """Milliseconds since 1970, as MLflow counts time."""
    return time.time_ns() // 1_000_000


def why(error: BaseException) -> str:
    """What lies at the bottom of an error, in one line of at most 300 characters."""
    if str(error).startswith("API request to"):  # then a chain of five, each with the whole text of the one before
        while error.__cause__ or error.__context__:
            error = error.__cause__ or error.__context__ or error
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    lines = [line for line in text.strip().splitlines() if not line.startswith("(raised as a result of")]
    return printable(redacted(lines[0] if lines else type(error).__name__), 300)


@functools.cache
def _bound_answers() -> None:
    """Let no answer to MLflow in this process be endless, or slow without end."""
    from mlflow.utils import request_utils

    plain = request_utils._get_request_session

    def bounded(*arguments: Any, **keywords: Any) -> Any:
        session = plain(*arguments, **keywords)
        session.hooks["response"] = [_read_bounded]
        if not isinstance(session.send, functools.partial):  # MLflow gives the same session again
            session.send = functools.partial(_send_bounded, session.send)
        return session

    request_utils._get_request_session = bounded


def _send_bounded(send: Callable[..., Any], request: Any, **settings: Any) -> Any:
    """Send a request in a thread of its own: a server may also send a byte of a header now and then, which no timeout
    of a socket ends."""
    outcome: list[Any] = []

    def ask() -> None:
        try:
            outcome.append(send(request, **settings))
        except Exception as error:
            outcome.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS + int(request.headers.get("Content-Length") or 0) / SLOWEST)
    if not outcome:
        raise ConnectionError("its answer has no end")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _read_bounded(answer: Any, **settings: Any) -> Any:
    until, content = time.monotonic() + ANSWER_SECONDS, bytearray()
    while not settings.get("stream") and (part := answer.raw.read1(65536, decode_content=True)):
        content += part
        if len(content) > LONGEST_ANSWER or time.monotonic() > until:
            answer.close()
            raise ConnectionError("its answer has no end")
        answer._content, answer._content_consumed = bytes(content), True
    return answer
