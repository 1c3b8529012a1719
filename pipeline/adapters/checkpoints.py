"""Where an unfinished training was: written whole or not at all, under a lock that names its process."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from pipeline.errors import Problem, UserError


@dataclass(frozen=True)
class TrainState:
    """All that a training needs to go on: the finished steps, and tensors by name."""

    step: int
    tensors: dict[str, torch.Tensor]


@contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """A folder for checkpoints that one process at a time may use; it goes when the work succeeds.

    Raises:
        UserError: when another process holds it.
    """
    path.mkdir(parents=True, exist_ok=True)
    holder = path.with_suffix(".pid")
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = holder.read_text().strip() if holder.exists() else "unknown"
        mend = "Wait for it, or stop it: two trainings must not write the same checkpoints."
        raise UserError(Problem(str(path), f"process {who} is training this already", mend)) from None
    try:
        holder.write_text(f"{os.getpid()}\n")
        yield path
        shutil.rmtree(path)
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def save_checkpoint(path: Path, state: TrainState) -> None:
    """Write the state whole or not at all."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    os.close(handle)
    save_file(state.tensors, partial, metadata={"step": str(state.step)})
    os.replace(partial, path)


def load_checkpoint(path: Path) -> TrainState | None:
    """The state in `path`; None when there is none, or when it is damaged, which is said."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return TrainState(int(file.metadata()["step"]), {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        tqdm.write(f"{path}: a damaged checkpoint is passed over ({error}); this adapter starts again")
        return None
