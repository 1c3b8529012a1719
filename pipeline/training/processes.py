"""Processes that train together: starting them, who takes which share, and the sum of their gradients."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from pipeline.errors import Problem, UserError

Item = TypeVar("Item")
LONGEST_WAIT = timedelta(days=30)
"""One process may train much longer than another; torch's own limit is minutes."""


@dataclass(frozen=True)
class Processes:
    """One of `count` processes that work together, number `index` of them."""

    index: int
    count: int

    @property
    def main(self) -> bool:
        """The one that writes."""
        return self.index == 0

    def share(self, items: range) -> range:
        """The part of a batch that is this one's: every count-th place, so that all places are taken once."""
        return items[self.index :: self.count]

    def shared_out(self, items: Sequence[Item]) -> list[Item]:
        """This one's part of work for which nobody has to wait."""
        return list(items[self.index :: self.count])

    def add_up(self, down_grad: torch.Tensor, up_grad: torch.Tensor, losses: torch.Tensor, stop: bool) -> bool:
        """Sum gradients and losses over the processes, in place; whether any of them was told to stop."""
        if self.count == 1:
            return stop
        flag = torch.tensor([float(stop)], device=losses.device)
        for tensor in (down_grad, up_grad, losses, flag):
            total = tensor.contiguous()
            distributed.all_reduce(total)
            tensor.copy_(total)
        return bool(flag > 0)

    def agree(self, figures: torch.Tensor) -> torch.Tensor:
        """The first process's figures, so that all decide alike."""
        if self.count > 1:
            distributed.broadcast(figures, src=0)
        return figures

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            distributed.barrier()


ALONE = Processes(0, 1)


def wanted(count: int | None, device: torch.device) -> int:
    """How many processes to train with: as asked for, or one for each GPU, or one.

    Raises:
        UserError: when there are fewer GPUs than processes asked for.
    """
    there = torch.cuda.device_count() if device.type == "cuda" else None
    if count is None:
        return there or 1
    if there is not None and count > there:
        found = f"{count} processes for {there} GPU(s)"
        raise UserError(Problem("params.yaml: machine.processes", found, f"Write {there} or fewer, or null."))
    return count


def is_launched() -> bool:
    """Whether `accelerate launch` (or torchrun) has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch(arguments: Sequence[str], count: int, device: torch.device) -> int:
    """Run `morphline <arguments>` in `count` processes through `accelerate launch`; their exit code.

    Every argument is explicit: a user's own accelerate config must not change a result.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    explicit = [
        "--multi_gpu", f"--num_processes={count}", "--num_machines=1", "--machine_rank=0", "--main_process_port=0",
        "--mixed_precision=no", "--dynamo_backend=no", "--rdzv_backend=c10d", "--module", "pipeline", *arguments,
    ]  # fmt: skip
    parsed = launch_command_parser().parse_args(explicit)
    # A meeting point of its own on a free port: else two trainings at once on a machine would meet each other.
    parsed.standalone = True
    before = dict(os.environ)
    try:
        if device.type == "cpu":
            os.environ["ACCELERATE_USE_CPU"] = "true"
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
        launch_command(parsed)
        return 0
    except ChildFailedError as error:
        # The processes have said what happened; the first to fail says how it ends.
        return abs(error.get_first_failure()[1].exitcode) or 1
    except SignalException as error:
        return 128 + int(error.sigval)
    finally:
        os.environ.clear()
        os.environ.update(before)


def stop_with_launcher(look_every: float = 0.5) -> None:
    """From now on, stop as after SIGTERM when the process that started this one is gone, even by SIGKILL.

    Else its processes would train on unseen, and the next training would find their adapters locked.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(look_every)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


def joined(device: torch.device) -> tuple[Processes, torch.device]:
    """This process's place among those that `accelerate launch` has started, and its own device."""
    if not is_launched():
        return ALONE, device
    for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            found = f"{name} splits models over GPUs; here the base is frozen and an adapter has megabytes"
            raise UserError(Problem("accelerate launch", found, "Launch with --multi_gpu, or leave it to `dvc repro`."))
    stop_with_launcher()
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu", timeout=LONGEST_WAIT)
    return Processes(state.process_index, state.num_processes), state.device
