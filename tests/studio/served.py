"""`morphline studio` as a process of its own over a small project, for a browser: started, killed, started again."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from pipeline.studio.progress import LogReader, Progress
from tests.studio.conftest import until

# What DVC calls. Only the training, which is interrupted and killed here, is a process of its own: it must be in the
# job's group of processes, and get the job's signals.
CHOICE = """\
#!/bin/sh
if [ "$1" = train ]; then exec "{python}" -m pipeline "$@"; fi
exec "{warm}/morphline" "$@"
"""


class Served:
    """A server over a project. warm: the folder of a `morphline` that starts at once. address: with its token."""

    def __init__(self, project: Path, warm: Path, place: Path) -> None:
        self.project, self.errors = project, place / "errors.txt"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.origin, self.address = f"http://127.0.0.1:{self.port}", ""
        (place / "bin").mkdir()
        script = place / "bin/morphline"
        script.write_text(CHOICE.format(python=sys.executable, warm=warm), encoding="utf-8")
        script.chmod(0o755)
        self.environment = {**os.environ, "PATH": os.pathsep.join([str(script.parent), os.environ["PATH"]])}
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it on its port, and wait for the address."""
        command = [sys.executable, "-m", "pipeline", "studio", "--port", str(self.port), "--no-browser"]
        with self.errors.open("a") as errors:
            self.process = subprocess.Popen(
                command, cwd=self.project, env=self.environment, stdout=subprocess.PIPE, stderr=errors, text=True,
                # Shells start what runs in the background with SIGINT ignored, and processes inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said.startswith(f"Open {self.origin}/?token="), said + self.errors.read_text()
        self.address = said.split()[1]

    def kill(self) -> None:
        """What no program can prepare for."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ctrl-C; a job that runs is interrupted."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(300)

    def job(self, key: str) -> dict[str, Any]:
        """A job as it is on disk."""
        return json.loads((self.project / ".work/studio/jobs" / key / "job.json").read_text(encoding="utf-8"))

    def log(self, key: str) -> Path:
        """What a job prints."""
        return self.project / ".work/studio/jobs" / key / "log.txt"

    def progress(self, key: str) -> Progress:
        """How far a job is by its log."""
        return LogReader(self.log(key)).read()

    def wait_for_training(self, key: str, seconds: float) -> None:
        """Wait until a job trains."""
        until(lambda: self.progress(key).stage.startswith("train@") and self.progress(key).step > 0, seconds)

    def processes(self, key: str) -> list[psutil.Process]:
        """The processes of a job that runs: the first one and all that it has started."""
        first = psutil.Process(self.job(key)["process"][0])
        return [first, *first.children(recursive=True)]
