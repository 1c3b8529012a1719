"""A morph by two real processes, as the command line starts them: a wrong param, and Ctrl-C."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.project import ROOT, edit, with_values
from tests.stages.test_train_processes import morphline


@pytest.fixture
def trained(project: Path, ran: Path) -> Path:
    """A project with adapters, for two processes."""
    for part in ("data/prepared", "models/adapters"):
        shutil.copytree(ran / part, project / part)
    values = {"machine.processes": 2, "machine.batch": 1, "morph.steps": 60, "morph.frames": 30}
    edit(project / "params.yaml", lambda text: with_values(text, values))
    return project


def test_a_users_mistake_is_told_once_and_without_a_traceback(trained: Path) -> None:
    shutil.rmtree(trained / "models/adapters/hills")
    done = morphline("frames", "hills")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "morphline frames: 1 problem(s)",
        "  models/adapters/hills: it is not there yet. Run `dvc repro train@hills`.",
    ]


def test_ctrl_c_ends_all_processes_with_one_message_and_leaves_nothing(trained: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # Shells start what runs in the background with SIGINT ignored, and processes inherit that.
    running = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "frames", "hills"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    limit = threading.Timer(200, running.kill)  # so that nothing here waits for ever
    limit.start()
    assert running.stderr
    try:
        line = ""
        while "frames:" not in line:  # the progress bar: both are at work
            line = running.stderr.readline()
            assert line, "it ended by itself"
        time.sleep(0.5)
        others = psutil.Process(running.pid).children(recursive=True)
        assert len([child for child in others if "pipeline" in child.cmdline()]) == 2
        running.send_signal(signal.SIGINT)
        said = running.stderr.read()
        assert running.wait(60) == 130
    finally:
        limit.cancel()
        running.kill()
    assert said.count("morphline") == 1 and "morphline frames: stopped" in said and "Traceback" not in said, said
    assert not [child for child in others if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not (trained / "data/morphs").exists() or not list((trained / "data/morphs").iterdir())
