import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app


def test_the_dashboard_is_opened_on_the_port_and_its_exit_code_is_ours(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(subprocess, "call", lambda command, cwd: called.append(command) or 3)
    answer = CliRunner().invoke(app, ["ui", "--port", "5005"])
    assert answer.exit_code == 3
    assert answer.stdout.startswith("Open http://127.0.0.1:5005/#/experiments/")
    (command,) = called
    assert command[command.index("--port") + 1] == "5005"


def test_ctrl_c_is_how_it_ends(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(command: list[str], cwd: Path) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "call", interrupt)
    assert CliRunner().invoke(app, ["ui"]).exit_code == 0
