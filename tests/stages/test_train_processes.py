"""Two real processes, through `accelerate launch` and gloo, against one."""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.stages import prepare, train
from tests.project import ROOT, contents, edit, with_values


def morphline(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("key", ["hills", "dots"])
def test_two_processes_train_what_one_trains(project: Path, key: str) -> None:
    """Three adapters shared out, and one trained on halves of each batch."""
    prepare.run(key)
    edit(project / "params.yaml", lambda text: with_values(text, {"machine.reuse": "false"}))
    train.run(key)
    folder = project / "models/adapters" / key
    one = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    edit(project / "params.yaml", lambda text: with_values(text, {"machine.processes": 2}))
    done = morphline("train", key)
    assert done.returncode == 0, done.stderr
    two = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    assert one.keys() == two.keys()
    for name, tensors in one.items():
        close = torch.cat([torch.isclose(tensors[k], two[name][k], atol=1e-4).flatten() for k in tensors])
        assert float(close.double().mean()) > 0.98, name
    again = contents(folder)
    assert morphline("train", key).returncode == 0
    assert contents(folder) == again, "two processes do not repeat themselves"


def test_a_users_mistake_is_told_once_and_without_a_traceback(project: Path) -> None:
    prepare.run("dots")
    values = {"machine.processes": 2, "train.targets": "[to_z]", "machine.reuse": "false"}
    edit(project / "params.yaml", lambda text: with_values(text, values))
    with socket.socket() as other:
        with suppress(OSError):  # somebody has it: as well
            other.bind(("localhost", 29400))  # where torch's launcher meets unless told otherwise; another training's
            other.listen()
        done = morphline("train", "dots")
    assert done.returncode == 1
    assert done.stderr.count("no layer is called to_z") == 1 and "Traceback" not in done.stderr
