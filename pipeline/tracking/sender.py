"""Sends a stage's operations, and keeps them while they cannot be sent."""

import logging
import shutil
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from pipeline.tracking.legal import legal_key
from pipeline.tracking.operations import OPERATION, Adapter, AnyOperation, Artifact
from pipeline.tracking.parents import Beginning, begin
from pipeline.tracking.server import Server, redacted, why
from pipeline.tracking.state import spool

if TYPE_CHECKING:
    from filelock import BaseFileLock

FIRST_PAUSE = 30.0
REFUSED = ".refused.jsonl"

log = logging.getLogger(__name__)


class Sender:
    """Sends in order. After a failure all is kept in `<run>.jsonl` (a Beginning, then one operation a line; files in a
    folder beside it) and, when the server answers again, sent from there; the pauses between tries double, so that a
    hanging server costs little. What the server refuses for good goes to `<run>.refused.jsonl`, out of the others' way.
    A lock in that folder says that somebody writes or sends these files; it goes with the process, however that ends.

    late: the stage is over, see `begin`; then nothing is logged. trouble: what the server did last when it did not take
    an operation. refusals: how many it refused.
    """

    def __init__(self, beginning: Beginning, uri: str, late: bool = False) -> None:
        self.beginning = beginning
        self.uri = uri
        self.late = late
        self.server: Server | None = None
        self.folder = spool() / legal_key(f"{beginning.stage} {beginning.process}").replace(" ", "-")
        self.kept = self.folder.with_name(f"{self.folder.name}.jsonl")
        self.refused = self.folder.with_name(f"{self.folder.name}{REFUSED}")
        self._pause = FIRST_PAUSE
        self._next_try = 0.0
        self.trouble = ""
        self.refusals = 0
        self._told = {"away", "refused", "damaged"} if late else set()
        self._lock: BaseFileLock | None = None

    def open(self) -> None:
        """Make the run. Raises what MLflow raises."""
        self.server, run = begin(self.beginning, self.uri, self.late)
        self.beginning = self.beginning.model_copy(update={"run": run})

    def send(self, operation: AnyOperation) -> None:
        """Send it, or keep it."""
        try:
            if self.server is None and time.monotonic() >= self._next_try:
                self.catch_up()
            sent = self.server is not None and self._sent(operation)
        except BaseException:  # Ctrl-C while the server is slow
            self.keep(operation)
            raise
        if not sent:
            self.keep(operation)

    def keep(self, operation: AnyOperation) -> None:
        """Keep it, without a try to send it."""
        self._keep(operation, self.kept)

    def keep_from_now(self, error: Exception) -> None:
        """The server is away: keep what follows."""
        self.server = None
        self.trouble = why(error)
        self._next_try = time.monotonic() + self._pause
        self._pause *= 2
        self._tell(
            "away",
            f"The tracking server {redacted(self.uri)} does not answer ({why(error)}). The work goes on;"
            f" its numbers are kept in {self.kept}. What is there at the end, `morphline track sync` sends",
        )

    def catch_up(self) -> None:
        """Try once to reach the server and send it what was kept."""
        try:
            self.open()
        except Exception as error:
            self.keep_from_now(error)
            return
        if not self.kept.is_file() or self.send_kept()[1]:
            return
        log.warning("The tracking server %s answers again and has all numbers.", redacted(self.uri))
        self._pause = FIRST_PAUSE
        self._told.discard("away")

    def send_kept(self) -> tuple[int, int]:
        """Send what is kept to the opened server: how many operations went, how many stay kept.

        Whatever stops it, no more stays kept than the one that was being sent, and those after it.
        """
        lines = kept_lines(self.kept)[1:]
        done = 0
        try:
            for line in lines:
                if not self._sent_line(line):
                    break
                done += 1
                if '"kind":"picture"' in line or '"kind":"adapter"' in line:  # these would be there twice
                    self._rewrite(lines[done:])
        finally:
            self._rewrite(lines[done:])
        return done, len(lines) - done

    def own(self) -> bool:
        """Whether these files are this process's to write and send, or become so now."""
        from filelock import FileLock, Timeout

        if self._lock is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "lock", blocking=False)
            try:
                lock.acquire()
            except Timeout:
                return False
            except (OSError, NotImplementedError) as error:
                # A file system without locks: better unlocked than never.
                log.warning("No lock for %s (%s): two processes at once may send the same twice", self.folder, error)
                return True
            self._lock = lock
        return True

    def close(self) -> None:
        """After the last operation: try once more for what is kept."""
        if self.server is None or self.kept.exists():
            self.catch_up()
        self.release()

    def release(self) -> None:
        """Leave the files to others, or nothing where nothing is kept."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if not self.kept.exists() and not self.refused.exists():
            shutil.rmtree(self.folder, ignore_errors=True)

    def new_file(self, name: str) -> Path:
        """A place for a file that waits to be sent, in a folder of its own."""
        folder = self.folder / uuid.uuid4().hex[:12]
        folder.mkdir(parents=True)
        return folder / name

    def _sent(self, operation: AnyOperation) -> bool:
        assert self.server is not None and self.beginning.run is not None
        try:
            operation.send(self.server, self.beginning.run)
        except Exception as error:
            if not _is_refusal(error):
                self.keep_from_now(error)
                return False
            self._keep(operation, self.refused)
            self.refusals += 1
            self.trouble = why(error)
            self._tell("refused", f"MLflow refuses {operation.kind}: {why(error)}. Kept in {self.refused}")
        return True

    def _sent_line(self, line: str) -> bool:
        try:
            operation = OPERATION.validate_json(line)
        except ValidationError:
            self._append(line, self.refused)
            self.refusals += 1
            self.trouble = "a damaged line"
            self._tell("damaged", f"{self.kept} holds a line that is no operation. Kept in {self.refused}")
            return True
        return self._sent(operation)

    def _keep(self, operation: AnyOperation, file: Path) -> None:
        if isinstance(operation, Artifact | Adapter) and self.folder not in operation.path.parents:
            copy = self.new_file(operation.path.name)
            (shutil.copytree if operation.path.is_dir() else shutil.copy2)(operation.path, copy)
            operation = operation.model_copy(update={"path": copy})
        self._append(operation.model_dump_json(), file)

    def _append(self, line: str, file: Path) -> None:
        self.own()
        file.parent.mkdir(parents=True, exist_ok=True)
        new = not file.exists()
        with file.open("a", encoding="utf-8") as stream:
            if new:
                stream.write(self.beginning.model_dump_json() + "\n")
            stream.write(line + "\n")

    def _rewrite(self, lines: list[str]) -> None:
        if not lines:
            self.kept.unlink(missing_ok=True)
            return
        fresh = self.kept.with_suffix(".new")
        fresh.write_text("\n".join([self.beginning.model_dump_json(), *lines]) + "\n", encoding="utf-8")
        fresh.replace(self.kept)

    def _tell(self, what: str, message: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning(message)


def kept_lines(file: Path) -> list[str]:
    """The lines of a file of operations; a caption may hold what `splitlines` takes for the end of a line."""
    return [line for line in file.read_text(encoding="utf-8").split("\n") if line]


def _is_refusal(error: Exception) -> bool:
    """Whether the server answered, and sending the same again would be answered the same."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())
        return 400 <= status < 500 and status not in (401, 403, 408, 429)
    return not isinstance(error, ConnectionError | TimeoutError | RequestException)
