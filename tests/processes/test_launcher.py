import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.processes import launcher
from pipeline.processes.launcher import process_count, relaunch
from tests.project import ROOT, edit, with_values


def test_processes_are_as_many_as_asked_for_or_one_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_count(None, torch.device("cpu")) == 1 and process_count(3, torch.device("cpu")) == 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert process_count(None, torch.device("cuda")) == 2 and process_count(1, torch.device("cuda")) == 1
    with pytest.raises(UserError, match="3 processes for 2 GPU"):
        process_count(3, torch.device("cuda"))
    assert process_count(None, torch.device("mps")) == 1  # where accelerate joins none
    with pytest.raises(UserError, match="2 processes for 1 GPU"):
        process_count(2, torch.device("mps"))


def test_every_argument_of_the_launch_is_explicit(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a user's own accelerate config changes nothing; and each launch meets at a port of its own."""
    seen = {}

    def execve(path: str, command: list[str], environment: dict[str, str]) -> None:
        seen.update(command=command, environment=environment)

    monkeypatch.setattr(launcher.os, "execve", execve)
    monkeypatch.delenv("OMP_NUM_THREADS")
    relaunch(["train", "alps"], 2, torch.device("cpu"))
    assert seen["command"][-4:] == ["--module", "pipeline", "train", "alps"]
    explicit = {"--num_processes=2", "--mixed_precision=no", "--main_process_port=0", "--rdzv_backend=static"}
    assert explicit <= set(seen["command"])
    assert seen["environment"]["ACCELERATE_USE_CPU"] == "true" and int(seen["environment"]["OMP_NUM_THREADS"]) >= 1
    monkeypatch.setattr(launcher.os, "cpu_count", lambda: 16)
    relaunch(["evaluate", "alps"], 2, torch.device("cuda"))  # whose frames are measured on the CPU
    assert "ACCELERATE_USE_CPU" not in seen["environment"] and seen["environment"]["OMP_NUM_THREADS"] == "8"


LAUNCH = """
import os, sys
def execve(path, command, environment):
    print(command[-2:], "diffusers" in sys.modules or "peft" in sys.modules)
    sys.exit(7)
os.execve = execve
from pipeline.cli import app
app(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["train", "sample", "frames", "evaluate", "edit"])
def test_processes_are_launched_before_the_libraries_of_a_stage_are_imported(project: Path, command: str) -> None:
    edit(project / "params.yaml", lambda text: with_values(text, {"machine.processes": 2}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [sys.executable, "-c", LAUNCH, command, "hills"]
    done = subprocess.run(started, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, f"['{command}', 'hills'] False\n"), done.stderr
