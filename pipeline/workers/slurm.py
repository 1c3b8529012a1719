"""Workers as elements of a SLURM array job."""

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import Problem, UserError
from pipeline.workers.local import Task

MOST = 1000
"""Elements of an array, as SLURM's own MaxArraySize (1001) has it."""


def array_script(tasks: Sequence[Task]) -> str:
    """The script of an array job with one element for each task."""
    cases = [f"{number}) exec {shlex.join(task.command)} ;;" for number, task in enumerate(tasks)]
    return "\n".join(["#!/bin/bash", 'case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac", ""])


def submit(tasks: Sequence[Task], workers: int, gpus: int | None, folder: Path, logs: Path, name: str) -> str:
    """Hand an array job over to `sbatch`; its number. At most `workers` elements run at once.

    gpus: that each asks for; None: as the partition gives. logs: the folder for what each writes. What sbatch needs
    besides (partition, time, memory) it reads from its own variables, such as SBATCH_PARTITION.

    Raises:
        UserError: there is no sbatch, or it refuses.
    """
    if len(tasks) > MOST:
        fix = f"Let each element take several keys: `--keys-each {-(-len(tasks) // MOST)}` or more."
        raise UserError(Problem("--on slurm", f"{len(tasks)} elements, of which SLURM takes {MOST}", fix))
    logs.mkdir(parents=True, exist_ok=True)
    options = [
        "--parsable",
        f"--job-name={name}",
        f"--array=0-{len(tasks) - 1}%{workers}",
        f"--chdir={folder}",
        f"--output={logs}/%x-%a.log",
        "--requeue" if any(task.tries for task in tasks) else "--no-requeue",
        *(["--ntasks=1", f"--gpus-per-task={gpus}"] if gpus else []),
    ]
    command = ["sbatch", *options]
    try:
        done = subprocess.run(command, input=array_script(tasks), capture_output=True, text=True, check=True)
    except FileNotFoundError:
        fix = "Run this on a machine of a SLURM cluster, or choose `--on local` or `--on ray`."
        raise UserError(Problem("sbatch", "it is not installed here", fix)) from None
    except subprocess.CalledProcessError as error:
        fix = "Set what it lacks in its variables, such as SBATCH_PARTITION or SBATCH_TIMELIMIT."
        raise UserError(Problem("sbatch", " ".join(error.stderr.split()), fix)) from None
    return re.split(r"[;\s]", done.stdout.strip())[0]
