"""Processes that share the work, through Accelerate: how many, starting them, and joining them."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from types import FrameType
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from pipeline.errors import Problem, UserError
from pipeline.processes import launcher

LONGEST_WAIT = timedelta(days=30)
"""One process may train much longer than another; torch's own limit is minutes."""


def process_count(wanted: int | None, device: torch.device) -> int:
    """How many processes to work with: as asked for, or one for each GPU, or one.

    Raises:
        UserError: when there are fewer GPUs than processes asked for.
    """
    available = torch.cuda.device_count() if device.type == "cuda" else None
    if wanted is None:
        return available or 1
    if available is not None and wanted > available:
        found = f"{wanted} processes for {available} GPU(s)"
        raise UserError(Problem("params.yaml: machine.processes", found, f"Write {available} or fewer, or null."))
    return wanted


def is_launched() -> bool:
    """Whether `accelerate launch` (or torchrun) has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def all_processes(command: Sequence[str], wanted: int | None, device: torch.device) -> Accelerator:
    """This process's place among those that share the work of `morphline <command>`: `wanted`, or one for each GPU.

    Where they are to be several and have not been launched, it launches them and gives way to them, so that nothing may
    have been begun before.

    Raises:
        UserError: as `process_count` and `join_processes`.
    """
    count = process_count(wanted, device)
    if count > 1 and not is_launched():
        relaunch(command, count, device)
    return join_processes(device)


def relaunch(arguments: Sequence[str], count: int, device: torch.device) -> NoReturn:
    """Run `morphline <arguments>` in `count` processes through `accelerate launch`, in place of this process.

    In place, so that signals and the exit code are the launcher's own. Every argument is explicit: a user's own
    accelerate config must not change a result. Port 0 takes a free one, and the static rendezvous meets there: two
    stages at once on one machine must not meet each other.
    """
    command = [
        sys.executable, "-m", launcher.__name__,
        "--multi_gpu", f"--num_processes={count}", "--num_machines=1", "--machine_rank=0", "--main_process_port=0",
        "--mixed_precision=no", "--dynamo_backend=no", "--rdzv_backend=static", "--module", "pipeline", *arguments,
    ]  # fmt: skip
    environment = dict(os.environ)
    if device.type == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, command, environment)


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
