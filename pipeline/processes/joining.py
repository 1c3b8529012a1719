"""Processes that share the work, through Accelerate: joining them."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from types import FrameType

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from pipeline.errors import Problem, UserError
from pipeline.processes.launcher import is_launched, launch_if_several

LONGEST_WAIT = timedelta(days=30)
"""One process may train much longer than another; torch's own limit is minutes."""


def all_processes(command: Sequence[str], wanted: int | None, device: torch.device) -> Accelerator:
    """This process's place among those that share the work of `morphline <command>`: `wanted`, or one for each GPU.

    Where they are to be several and have not been launched, it launches them and gives way to them, so that nothing may
    have been begun before.

    Raises:
        UserError: as `launch_if_several` and `join_processes`.
    """
    launch_if_several(command, wanted, device)
    return join_processes(device)


def join_processes(device: torch.device) -> Accelerator:
    """This process's place among those that `accelerate launch` has started, or alone.

    Raises:
        UserError: when it was launched to split models over GPUs.
    """
    for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            found = f"{name} splits models over GPUs; here the base is frozen and an adapter has megabytes"
            raise UserError(Problem("accelerate launch", found, "Launch with --multi_gpu, or leave it to `dvc repro`."))
    if is_launched():
        signal.signal(signal.SIGTERM, _end)
        stop_with_launcher()
    patient = InitProcessGroupKwargs(timeout=LONGEST_WAIT)
    return Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[patient])


def _end(number: int, frame: FrameType | None) -> None:
    """Clean up and end without a word: whoever was at fault says why. Unless this process is ending already."""
    if sys.exc_info()[0] is None:
        raise SystemExit(128 + number)


def stop_with_launcher(look_every: float = 0.5) -> None:
    """From now on, stop as after SIGTERM when the process that started this one is gone, even by SIGKILL.

    Else its processes would train on unseen, and the next training would find their adapters locked.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(look_every)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()
