"""Sends what stages that are over have kept while their server was away."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from pipeline.errors import Problem, UserError
from pipeline.params import TrackingSection
from pipeline.tracking.operations import End
from pipeline.tracking.parents import Beginning, settle
from pipeline.tracking.sender import REFUSED, Sender, kept_lines
from pipeline.tracking.server import Run, connect, only_one, redacted, tracking_uri, why
from pipeline.tracking.state import spool


@dataclass(frozen=True)
class Outcome:
    """What became of one kept run.

    stage: such as `train@alps`, or the file's name where that cannot be read. sent, left: operations. said: why some
    are left or were refused; empty when all is well. failed: whether somebody must look after it.
    """

    stage: str
    sent: int
    left: int
    said: str = ""
    failed: bool = False

    def __str__(self) -> str:
        sent = f"{self.stage}: {self.sent} operation{'s' * (self.sent != 1)} sent"
        left = f", {self.left} still kept" if self.left else ""
        return f"{sent}{left}{f' ({self.said})' if self.said else ''}"


def kept_files() -> list[Path]:
    """The files that hold what stages could not send, those of the stages that began first in front."""
    files = [file for file in spool().glob("*.jsonl") if not file.name.endswith(REFUSED)]
    begun = {file: beginning.started if (beginning := _read_beginning(file)) else 0 for file in files}
    return sorted(files, key=lambda file: (begun[file], file.name))


def refused_files() -> list[Path]:
    """The files that hold what a server refused for good."""
    return sorted(spool().glob(f"*{REFUSED}"))


def sync(params: TrackingSection) -> Iterator[Outcome]:
    """Send everything that is kept, run by run. What cannot be sent stays kept; a stage at work sends its own.

    Raises:
        UserError: the server cannot be reached at all.
    """
    uri = tracking_uri(params)
    files = kept_files()
    try:
        if files:
            connect(uri).search_experiments(max_results=1)
    except Exception as error:
        problem = Problem(
            f"tracking server {redacted(uri)}",
            f"cannot be used ({why(error)}); what is kept stays",
            "Start it, or say where it is (MLFLOW_TRACKING_URI in the environment wins over tracking.uri in"
            " params.yaml), and run `morphline track sync` again.",
        )
        raise UserError(problem) from None
    for file in files:
        if outcome := _send_file(file, uri):
            yield outcome


def _send_file(file: Path, uri: str) -> Outcome | None:
    """None: another process has sent it meanwhile."""
    beginning = _read_beginning(file)
    if beginning is None:
        said = "its first line is damaged, so that nobody can tell whose numbers these are"
        return Outcome(file.name, 0, len(_lines(file)), said, failed=True) if file.exists() else None
    sender = Sender(beginning, uri, late=True)
    if not sender.own():
        return Outcome(beginning.stage, 0, len(_lines(file)) - 1, "left to the process that is at work on it")
    try:
        return _send_all(sender) if file.exists() else None
    finally:
        sender.release()


def _send_all(sender: Sender) -> Outcome:
    stage, waiting = sender.beginning.stage, len(_lines(sender.kept)) - 1
    try:
        if sender.beginning.run and not _has(sender.uri, sender.beginning.run):
            said = f"its run was begun on {sender.beginning.uri or 'another server'}, and is not on this one"
            return Outcome(stage, 0, waiting, said, failed=True)
        if '"kind":"end"' not in sender.kept.read_text(encoding="utf-8"):  # killed without a chance to say so
            killed = End(status="KILLED", stamp=int(sender.kept.stat().st_mtime * 1000))
            with sender.kept.open("a", encoding="utf-8") as file:
                file.write("\n")  # the last line may be half a line; an empty one does no harm
            sender.keep(killed)
        sender.open()
        sent, left = sender.send_kept()
        if sender.server and sender.beginning.run:
            with only_one():
                settle(sender.server, sender.beginning.run.parent)
    except Exception as error:
        return Outcome(stage, 0, len(_lines(sender.kept)) - 1, why(error), failed=True)
    if left:
        return Outcome(stage, sent, left, sender.trouble, failed=True)
    if sender.refusals:
        said = f"{sender.refusals} refused by it: {sender.trouble}; kept in {sender.refused}"
        return Outcome(stage, sent - sender.refusals, 0, said, failed=True)
    return Outcome(stage, sent, 0)


def _has(uri: str, run: Run) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        connect(uri).get_run(run.child)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _read_beginning(file: Path) -> Beginning | None:
    lines = _lines(file)
    try:
        return Beginning.model_validate_json(lines[0]) if lines else None
    except ValidationError:
        return None


def _lines(file: Path) -> list[str]:
    """No lines where another process has sent it and taken it away."""
    try:
        return kept_lines(file)
    except FileNotFoundError:
        return []
