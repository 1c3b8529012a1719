"""Stages in folders, one after the other: `tests/stages/runs.py stage:key:folder ...`, in each of several processes."""

import importlib
import sys
from contextlib import chdir

from accelerate import PartialState


def run(*tasks: str) -> None:
    for task in tasks:
        stage, key, folder = task.split(":")
        with chdir(folder):
            importlib.import_module(f"pipeline.stages.{stage}").run(key)
        PartialState().wait_for_everyone()  # the first process writes what the others must not miss


if __name__ == "__main__":
    run(*sys.argv[1:])
