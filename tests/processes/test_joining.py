import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from accelerate import PartialState

from pipeline.errors import UserError
from pipeline.processes.joining import join_processes


def test_shares_take_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What we rely on: lists are cut without padding, also into more parts than there are items."""
    state = PartialState(cpu=True)
    for count in (3, 12):
        monkeypatch.setattr(state, "num_processes", count)
        shares = []
        for index in range(count):
            monkeypatch.setattr(state, "process_index", index)
            with state.split_between_processes(list(range(8))) as share:
                shares.append(share)
        assert [place for share in shares for place in share] == list(range(8)), count


@pytest.mark.parametrize("name", ["DEEPSPEED", "FSDP"])
def test_what_splits_models_is_refused_and_one_process_is_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    cpu = torch.device("cpu")
    alone = join_processes(cpu)
    assert alone.num_processes == 1 and alone.is_main_process and alone.device == cpu
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UserError, match=f"{name} splits models"):
        join_processes(cpu)


LAUNCHER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=sys.stdout, start_new_session=True)
child.wait()
"""
WORKER = """
import os, time
from pipeline.processes.joining import stop_with_launcher
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
