"""Workers as processes of this machine, each with GPUs of its own."""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import Problem, UserError
from pipeline.workers.groups import leashed, undisturbed

VISIBLE = "CUDA_VISIBLE_DEVICES"
LOOK_EVERY = 0.1
KILLED = 128
LAST_SIGNAL = 64


@dataclass
class Task:
    """What one worker does. label: for people. command: its own. tries: those that are left after this one."""

    label: str
    command: Sequence[str]
    tries: int = 0


@dataclass
class _Slot:
    """Room for one worker at a time."""

    environment: Mapping[str, str]
    task: Task | None = None
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    leash: ExitStack = field(default_factory=ExitStack)


def was_killed(code: int) -> bool:
    """Whether an exit code says that a signal ended a worker or its stage: another try may go well."""
    return KILLED < code <= KILLED + LAST_SIGNAL


def devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get(VISIBLE)) is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def share_devices(workers: int, gpus: int | None) -> list[dict[str, str]]:
    """The environment of each worker: `gpus` devices that no other has. None: one each where there are any.

    Raises:
        UserError: there are not so many.
    """
    there = devices() if gpus != 0 else []
    each = (1 if there else 0) if gpus is None else gpus
    if workers * each > len(there):
        fix = "Start fewer workers (-j), or let them share what is there (`--gpus 0`)."
        found = f"{workers} workers with {each} each need {workers * each}, and there are {len(there)}"
        raise UserError(Problem("GPUs", found, fix))
    if not each:
        return [{} for _ in range(workers)]
    return [{VISIBLE: ",".join(there[number * each : (number + 1) * each])} for number in range(workers)]


def run_here(tasks: Sequence[Task], slots: Sequence[Mapping[str, str]], folder: Path, logs: Path) -> list[str]:
    """Run tasks, as many at once as there are slots; the labels of those that failed.

    slots: what each adds to the environment. folder: where they run. logs: a folder for what each writes,
    `<label>.log`. A task whose worker was killed is tried again as often as it says. When the block is interrupted all
    workers are ended first.
    """
    waiting, failed = deque(tasks), []
    logs.mkdir(parents=True, exist_ok=True)
    room = [_Slot({**os.environ, **slot}) for slot in slots]
    try:
        while waiting or any(slot.task for slot in room):
            for slot in room:
                if slot.task is None and waiting:
                    _start(slot, waiting.popleft(), folder, logs)
            for task, code in _ended(room):
                _tell(task, code, logs)
                if was_killed(code) and task.tries:
                    task.tries -= 1
                    waiting.append(task)
                elif code:
                    failed.append(task.label)
            time.sleep(LOOK_EVERY)
    finally:
        with undisturbed():
            for slot in room:
                if slot.process and slot.process.stdin:
                    slot.process.stdin.close()  # all of them begin to end before one is waited for
            for slot in room:
                slot.leash.close()
    return failed


def _start(slot: _Slot, task: Task, folder: Path, logs: Path) -> None:
    log = slot.leash.enter_context((logs / f"{task.label}.log").open("ab"))
    held = leashed(task.command, folder, slot.environment, output=log, errors=subprocess.STDOUT)
    slot.task, slot.started = task, time.monotonic()
    slot.process = slot.leash.enter_context(held)
    print(f"{task.label}: started", flush=True)


def _ended(room: Sequence[_Slot]) -> Iterator[tuple[Task, int]]:
    for slot in room:
        if slot.task and slot.process and (code := slot.process.poll()) is not None:
            task, slot.task, slot.process = slot.task, None, None
            slot.leash.close()
            yield task, code if code >= 0 else KILLED - code


def _tell(task: Task, code: int, logs: Path) -> None:
    log = logs / f"{task.label}.log"
    if not code:
        print(f"{task.label}: done", flush=True)
        return
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    how = f"was ended by signal {code - KILLED}" if was_killed(code) else f"failed with exit code {code}"
    print(f"{task.label}: {how} ({log}); its last words:", file=sys.stderr)
    print(*[f"    {line}" for line in lines[-5:]], sep="\n", file=sys.stderr, flush=True)
