"""What the work runs on."""

import torch

from pipeline.errors import Problem, UserError
from pipeline.sections import BaseSection


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA, else Apple's MPS, else the CPU.

    Raises:
        UserError: when the device asked for is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in there if there[kind]))
    if not there[name]:
        found = f"there is no {name} device for torch here"
        raise UserError(Problem("params.yaml: machine.device", found, "Write `auto`, or fix the torch installation."))
    return torch.device(name)


def find_dtype_problems(section: BaseSection, device: torch.device) -> list[Problem]:
    """A precision that the device cannot train in."""
    if section.dtype == "tf32" and device.type != "cuda":
        return [Problem("params.yaml: base.dtype", "tf32 needs an NVIDIA GPU", "Write `float32`, or `bfloat16`.")]
    if section.dtype == "float16" and device.type == "cpu":
        return [Problem("params.yaml: base.dtype", "float16 needs a GPU", "Write `float32`, or `bfloat16`.")]
    return []


def torch_dtype(section: BaseSection) -> torch.dtype:
    """The type of the base's weights. Says to torch, too, whether it may round float32 factors to TF32.

    Both ways: torch's own default is yes for convolutions and no for matrices.
    """
    allowed = section.dtype == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    return torch.float32 if allowed else getattr(torch, section.dtype)


def precision_of(base_dtype: torch.dtype) -> str:
    """What results depend on: a base's own precision, and `tf32` where float32 is rounded to it."""
    rounded = base_dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if rounded else str(base_dtype)
