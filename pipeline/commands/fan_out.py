"""`morphline fan-out`: the keys of a stage that need work, shared out among workers (`morphline work`).

What starts processes, here or on other machines, are engines that others keep; what carries results is DVC's cache.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.commands.work import require_remote
from pipeline.options import Engine
from pipeline.state import workspace
from pipeline.workers.groups import stopped_by_sigterm
from pipeline.workers.local import Task, devices, run_here, share_devices
from pipeline.workers.stages import choose, find_stale, open_project

LOGS = Path(".work/fan-out")


def need_work(stage: str, keys: Sequence[str]) -> list[str]:
    """The keys of a stage that `dvc repro` would have to compute, of the given ones or of all.

    Raises:
        UserError: no such stage or key, or they wait for other stages.
    """
    return [name.partition("@")[2] or name for name in _stale(stage, keys, None)]


def run(
    stage: str,
    keys: Sequence[str],
    on: Engine,
    *,
    workers: int | None = None,
    gpus: int | None = None,
    each: int = 1,
    retries: int = 0,
    remote: str | None = None,
    place: Path | None = None,
) -> bool:
    """Start workers for the keys that need work; whether all are made (with SLURM: queued).

    workers: at once; None: one a GPU, or one. gpus: for each worker; None: one where there are any. each: keys of one
    worker. retries: of a key whose worker was killed. remote, place: as `morphline work` takes them.

    Raises:
        UserError: no such stage, key or remote, they wait for other stages, or the engine is not there.
    """
    names = _stale(stage, keys, remote)
    if not names:
        print(f"{stage}: nothing to do")
        return True
    home = workspace().resolve()
    tasks = tasks_for(names, each, retries, remote, place)
    if on == "slurm":
        from pipeline.workers.slurm import submit

        job = submit(tasks, workers or len(tasks), gpus, home, home / LOGS, stage)
        print(f"{stage}: {len(names)} keys in {len(tasks)} elements of job {job}; afterwards: `dvc repro {stage}`")
        return True
    with stopped_by_sigterm():
        if on == "ray":
            from pipeline.workers.on_ray import run_on_ray

            failed = run_on_ray(tasks, workers or len(tasks), gpus, home)
        else:
            count = min(workers or max(1, len(devices())), len(tasks))
            failed = run_here(tasks, share_devices(count, gpus), home, home / LOGS)
    if failed:
        print(f"{stage}: {len(failed)} of {len(tasks)} failed: {' '.join(failed)}", file=sys.stderr)
    print(f"{stage}: `dvc repro {stage}` takes what was made")
    return not failed


def tasks_for(
    names: Sequence[str], each: int, retries: int, remote: str | None = None, place: Path | None = None
) -> list[Task]:
    """A worker's command for each so many instances of a stage."""
    more = [*(["--remote", remote] if remote else []), *(["--scratch", str(place.absolute())] if place else [])]
    tasks = []
    for start in range(0, len(names), each):
        part = names[start : start + each]
        stage = part[0].partition("@")[0]
        keys = [key for name in part if (key := name.partition("@")[2])]
        label = part[0] if len(part) == 1 else f"{part[0]}..{part[-1].partition('@')[2]}"
        tasks.append(Task(label, [sys.executable, "-m", "pipeline", "work", *more, stage, *keys], retries))
    return tasks


def _stale(stage: str, keys: Sequence[str], remote: str | None) -> list[str]:
    repo = open_project(workspace().resolve())
    names = choose(repo, stage, keys)
    require_remote(repo, remote)
    stale = find_stale(repo, names)
    repo.close()
    return stale
