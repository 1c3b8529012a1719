"""Importing what takes seconds: torch, diffusers, peft, MLflow."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Leave the garbage collector out while modules are imported, and what they define out of it from then on.

    It would walk again and again over a million objects of which nothing is garbage: on the way, at work, and once more
    when the process ends. A third of the time of a command that imports torch, diffusers and peft.
    """
    before, enabled = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:  # otherwise what is frozen would be others' garbage
            gc.freeze()
        if enabled:
            gc.enable()
