import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch

from pipeline.errors import UserError
from pipeline.training.processes import ALONE, Processes, joined, wanted


def test_shares_take_everything_once() -> None:
    shares = [Processes(index, 3).share(range(2, 10)) for index in range(3)]
    assert sorted(place for share in shares for place in share) == list(range(2, 10))
    assert [Processes(index, 2).shared_out("abc") for index in range(2)] == [["a", "c"], ["b"]]
    assert ALONE.share(range(4)) == range(4) and ALONE.main


def test_processes_are_as_many_as_asked_for_or_one_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wanted(None, torch.device("cpu")) == 1 and wanted(3, torch.device("cpu")) == 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert wanted(None, torch.device("cuda")) == 2 and wanted(1, torch.device("cuda")) == 1
    with pytest.raises(UserError, match="3 processes for 2 GPU"):
        wanted(3, torch.device("cuda"))


@pytest.mark.parametrize("name", ["DEEPSPEED", "FSDP"])
def test_what_splits_models_is_refused_and_one_process_is_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    cpu = torch.device("cpu")
    assert joined(cpu) == (ALONE, cpu)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UserError, match=f"{name} splits models"):
        joined(cpu)


LAUNCHER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=sys.stdout, start_new_session=True)
child.wait()
"""
WORKER = """
import os, time
from pipeline.training.processes import stop_with_launcher
from pipeline.training.stopping import stop_signals
stop_with_launcher(look_every=0.02)
with stop_signals() as stop:
    print(os.getpid(), flush=True)
    while not stop.flag:
        time.sleep(0.01)
    print("saved", stop.signal, flush=True)
"""


def test_processes_stop_and_save_when_their_launcher_is_killed() -> None:
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, WORKER], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout
    worker = int(launcher.stdout.readline())
    try:
        time.sleep(0.1)
        os.kill(worker, 0)  # at work as long as its launcher is
        launcher.kill()
        assert launcher.stdout.read() == f"saved {int(signal.SIGTERM)}\n"
    finally:
        launcher.wait()
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
