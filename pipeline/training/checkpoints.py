"""Where an unfinished training was: written whole or not at all, under a lock that names its process."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from pipeline.errors import Problem, UserError
from pipeline.outputs import atomic_file, naming


@dataclass(frozen=True)
class TrainState:
    """All that a training needs to go on: the finished steps, and tensors by name."""

    step: int
    tensors: dict[str, torch.Tensor]


@contextmanager
def training_lock(path: Path) -> Iterator[None]:
    """A lock `<path>.lock` that one process at a time may have; `<path>.pid` names it.

    Raises:
        UserError: when another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = path.with_name(f"{path.name}.pid")
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        with naming(path):
            lock.acquire(timeout=0)
    except Timeout:
        who = holder.read_text().strip() if holder.exists() else "unknown"
        fix = "Wait for it, or stop it: two trainings must not write the same checkpoints."
        raise UserError(Problem(str(path), f"process {who} is training this already", fix)) from None
    try:
        with naming(path):
            holder.write_text(f"{os.getpid()}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def training_locks(paths: Sequence[Path]) -> Iterator[None]:
    """All of these locks, each an open file: where the system's limit is lower and may be raised, it is.

    Raises:
        UserError: when another process has one of them, or the limit is too low.
    """
    if os.name == "posix":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = len(paths) + len(os.listdir("/dev/fd")) + 64  # what is open, and what else will be
        if resource.RLIM_INFINITY != hard < needed:
            found = f"{len(paths)} adapters at once need {needed} open files, of which the system allows {hard}"
            raise UserError(Problem("ulimit -n", found, "Raise that limit, or divide the set into several."))
        if resource.RLIM_INFINITY != soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    with ExitStack() as locks:
        for path in paths:
            locks.enter_context(training_lock(path))
        yield


@contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """A folder for checkpoints that one process at a time may use; it goes when the work succeeds.

    Raises:
        UserError: when another process holds it.
    """
    with training_lock(path):
        path.mkdir(parents=True, exist_ok=True)
        yield path
        shutil.rmtree(path)


@dataclass(frozen=True)
class Checkpoints:
    """The last two states of each unfinished training, in a folder of its own name each."""

    folder: Path

    def save(self, name: str, state: TrainState) -> None:
        """Write the state whole or not at all, and keep the one before."""
        last, before = self._paths(name)
        if last.exists():
            os.replace(last, before)
        write_state(last, state)

    def load(self, name: str) -> TrainState | None:
        """The last state that is whole; None when there is none. Damaged ones are reported and skipped."""
        for path in self._paths(name):
            if (state := read_state(path)) is not None:
                return state
        return None

    def load_at(self, name: str, step: int) -> TrainState | None:
        """The state at that very step, if one of the last two is. Before the first there is the start, step 0."""
        states = [state for path in self._paths(name) if (state := read_state(path)) is not None]
        if len(states) < 2:
            states.append(TrainState(0, {}))
        return next((state for state in states if state.step == step), None)

    def require_at(self, name: str, step: int) -> TrainState:
        """The state at that very step, which is known to have been saved; at step 0 there is nothing to save.

        Raises:
            UserError: when it is no longer there, or damaged.
        """
        if step == 0:
            return TrainState(0, {})
        if (state := self.load_at(name, step)) is None:
            found = f"the checkpoint of step {step}, saved a while ago, is gone or damaged"
            raise UserError(Problem(str(self.folder / name), found, "Run again: training goes on from what is there."))
        return state

    def forget(self, name: str) -> None:
        """Remove the states of a training that is over."""
        for path in self._paths(name):
            path.unlink(missing_ok=True)

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self.folder / name / "checkpoint.safetensors", self.folder / name / "checkpoint-before.safetensors"


class SavedStates(Mapping[str, TrainState]):
    """The states of trainings at known steps, each read from its checkpoint when it is asked for, and not kept.

    at: for each training, the name of its checkpoint and the step.
    """

    def __init__(self, checkpoints: Checkpoints, at: Mapping[str, tuple[str, int]]) -> None:
        self._checkpoints, self._at = checkpoints, dict(at)

    def __getitem__(self, name: str) -> TrainState:
        return self._checkpoints.require_at(*self._at[name])

    def __contains__(self, name: object) -> bool:
        return name in self._at  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


def write_state(path: Path, state: TrainState) -> None:
    """Write a state to a file, whole or not at all."""
    with atomic_file(path) as partial:
        save_file(state.tensors, partial, metadata={"step": str(state.step)})


def read_state(path: Path) -> TrainState | None:
    """The state in a file; None when there is none, or when it is damaged, which is reported."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return TrainState(int(file.metadata()["step"]), {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        tqdm.write(f"{path}: a damaged checkpoint is skipped ({error})")
        return None
