"""Starting the processes that share the work: how many, and `accelerate launch` in the place of this process.

What is launched runs as `python -m pipeline.processes.launcher --multi_gpu --num_processes=2 --module pipeline train
alps`: Accelerate's own command, but with its processes' exit code, and no words of the launcher's below their messages.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch

from pipeline.errors import Problem, UserError

MODULE = "pipeline.processes.launcher"


def process_count(wanted: int | None, device: torch.device) -> int:
    """How many processes to work with: as asked for, or one for each GPU, or one.

    Raises:
        UserError: when there are fewer GPUs than processes asked for.
    """
    # accelerate joins no processes on Apple's MPS: each would do all of the work.
    available = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device.type)
    if wanted is None:
        return available or 1
    if available is not None and wanted > available:
        found = f"{wanted} processes for {available} GPU(s)"
        raise UserError(Problem("params.yaml: machine.processes", found, f"Write {available} or fewer, or null."))
    return wanted


def is_launched() -> bool:
    """Whether `accelerate launch` (or torchrun) has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch_if_several(command: Sequence[str], wanted: int | None, device: torch.device) -> None:
    """Let several processes run `morphline <command>` in place of this one, unless one is enough or this is one.

    Raises:
        UserError: as `process_count`.
    """
    count = process_count(wanted, device)
    if count > 1 and not is_launched():
        relaunch(command, count, device)


def relaunch(arguments: Sequence[str], count: int, device: torch.device) -> NoReturn:
    """Run `morphline <arguments>` in `count` processes through `accelerate launch`, in place of this process.

    In place, so that signals and the exit code are the launcher's own. Every argument is explicit: a user's own
    accelerate config must not change a result. Port 0 takes a free one, and the static rendezvous meets there: two
    stages at once on one machine must not meet each other.
    """
    command = [
        sys.executable, "-m", MODULE,
        "--multi_gpu", f"--num_processes={count}", "--num_machines=1", "--machine_rank=0", "--main_process_port=0",
        "--mixed_precision=no", "--dynamo_backend=no", "--rdzv_backend=static", "--module", "pipeline", *arguments,
    ]  # fmt: skip
    environment = dict(os.environ)
    if device.type == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
    # Else the launcher gives each one thread, and frames are measured on the CPU, with GPUs too.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, command, environment)


def launch() -> int:
    """Run `accelerate launch` with this process's arguments; the exit code of the first process that failed, or 0."""
    from accelerate.commands.launch import main
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main()
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code < 0:  # the one case in which it could not say anything itself
            name = signal.Signals(-code).name
            print(f"morphline: one of the processes was ended by {name}; perhaps memory ran out", file=sys.stderr)
        return 128 - code if code < 0 else code or 1
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(launch())
