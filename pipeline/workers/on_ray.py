"""Workers as tasks of a Ray cluster, whose machines all see the project's folder. Ray is an extra: `.[ray]`."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import Problem, UserError
from pipeline.workers.groups import leashed
from pipeline.workers.local import KILLED, Task, was_killed


class WorkerKilled(Exception):
    """A worker was ended by a signal: Ray may try again."""


def run_on_ray(tasks: Sequence[Task], workers: int, gpus: int | None, folder: Path) -> list[str]:
    """Run tasks on the cluster of RAY_ADDRESS, else on the one of this machine, else on one that ends with this
    process; the labels of those that failed.

    workers: how many at once at most. gpus: that each asks for; None: one where the cluster has any. A task whose
    worker, or whose machine, is gone is tried again as often as it says.

    Raises:
        UserError: Ray is not installed, or has no such GPUs.
    """
    try:
        import ray
    except ImportError:
        fix = "Install it: `pip install -e '.[ray]'`."
        raise UserError(Problem("--on ray", "Ray is not installed", fix)) from None
    begun = not ray.is_initialized()
    if begun:
        _join(ray, workers)
    try:
        there = int(ray.cluster_resources().get("GPU", 0))
        each = (1 if there else 0) if gpus is None else gpus
        if each > there:
            fix = "Name fewer, or `--gpus 0` for none."
            raise UserError(Problem(f"--gpus {each}", f"the Ray cluster has {there} GPUs in all", fix))
        return _run(ray, tasks, workers, each, folder)
    finally:
        if begun:
            ray.shutdown()


def _join(ray: Any, workers: int) -> None:
    """Join the cluster that is there, or begin one that ends with this process."""
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), logging_level="ERROR")
        return
    except ConnectionError:
        if "RAY_ADDRESS" in os.environ:
            fix = "Start it, or unset RAY_ADDRESS for one of this machine's own."
            raise UserError(Problem("RAY_ADDRESS", "no Ray cluster answers there", fix)) from None
    try:
        ray.init(address="local", num_cpus=workers, logging_level="ERROR", include_dashboard=False)
    except Exception as error:  # of no kind of its own, where a busy machine takes longer than Ray's 30 seconds
        fix = "Start one with `ray start --head`, or choose `--on local`."
        raise UserError(Problem("--on ray", f"no cluster could be begun here ({error})", fix)) from None


def _run(ray: Any, tasks: Sequence[Task], workers: int, gpus: int, folder: Path) -> list[str]:
    remote = ray.remote(num_cpus=1, num_gpus=gpus)(_work)
    waiting, failed = list(reversed(tasks)), []
    running: dict[Any, Task] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                task = waiting.pop()
                retries = {"max_retries": task.tries, "retry_exceptions": [WorkerKilled]}
                running[remote.options(name=task.label, **retries).remote(list(task.command), str(folder))] = task
            done, _ = ray.wait(list(running))
            for one in done:
                task = running.pop(one)
                how = _outcome(ray, one)
                print(f"{task.label}: {how}", file=sys.stderr if how != "done" else sys.stdout, flush=True)
                if how != "done":
                    failed.append(task.label)
    finally:
        for one in running:
            ray.cancel(one, force=True)
    return failed


def _outcome(ray: Any, one: Any) -> str:
    try:
        code = ray.get(one)
    except ray.exceptions.RayTaskError as error:
        return str(error.cause or error)
    except ray.exceptions.RayError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return f"failed with exit code {code}" if code else "done"


def _work(command: list[str], folder: str) -> int:
    """On one of the cluster's machines: run a worker, which ends when Ray ends this."""
    with leashed(command, Path(folder), os.environ, errors=subprocess.STDOUT) as process:
        code = process.wait()
    code = KILLED - code if code < 0 else code
    if was_killed(code):
        raise WorkerKilled(f"was ended by signal {code - KILLED}")
    return code
