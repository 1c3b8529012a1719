import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands import ui
from pipeline.errors import UserError


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_served(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 0)])
def test_the_server_ends_with_the_command_however_it_is_stopped(
    project: Path, port: int, sent: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-m", "pipeline", "ui", "--port", str(port)]
    # Shells start what runs in the background with SIGINT ignored, and processes inherit that.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"Open http://127.0.0.1:{port}/#/experiments/")
        until = time.monotonic() + 120
        while not is_served(port):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.2)
        process.send_signal(sent)
        assert process.wait(60) == code
    finally:
        process.terminate()
        process.communicate(timeout=60)
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_a_server_that_ends_by_itself_gives_its_exit_code(
    project: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ui, "dashboard_command", lambda params, port: ([sys.executable, "-c", "raise SystemExit(3)"], project)
    )
    answer = CliRunner().invoke(app, ["ui", "--port", str(port)])
    assert answer.exit_code == 3
    assert answer.stdout.startswith(f"Open http://127.0.0.1:{port}/#/experiments/")


def test_a_port_that_is_taken_is_refused_before_an_address_is_printed(project: Path, port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        answer = CliRunner().invoke(app, ["ui", "--port", str(port)])
    assert answer.exit_code == 1 and answer.stdout == ""
    assert f"--port {port}: it cannot be served on (" in answer.stderr and "Choose another one" in answer.stderr


def test_a_host_that_is_not_known_is_not_taken_for_a_port(port: int) -> None:
    with pytest.raises(UserError, match=r"--host nohost\.invalid: it is not known here \("):
        ui.require_free(port, "nohost.invalid")
