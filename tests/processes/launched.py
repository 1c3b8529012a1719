"""Scripts run by several real processes, through `accelerate launch` and gloo."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from pipeline.processes import launcher
from tests.declarations import ROOT


def launch_command(script: Path, *arguments: str, count: int = 2) -> list[str]:
    """As `relaunch` would start them, but with a script in the place of the command line."""
    commands: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher.os, "execve", lambda path, command, environment: commands.append(command))
        launcher.relaunch([], count, torch.device("cpu"))
    (command,) = commands
    return [*command[: command.index("--module")], str(script), *arguments]


def launch(script: Path, *arguments: str, count: int = 2, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a script in `count` processes."""
    return subprocess.run(
        launch_command(script, *arguments, count=count),
        env=environment(), capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
