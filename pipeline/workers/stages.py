"""What DVC says of the stages: which instances there are, which need work, what they are made from."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import Problem, UserError

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

SHOWN = 5


@contextmanager
def asking_dvc(fix: str = "Correct it; where another `dvc` is at work, wait for its end.") -> Iterator[None]:
    """Its own errors, in the form of ours. fix: what mends them."""
    from dvc.exceptions import DvcException

    try:
        yield
    except DvcException as error:
        raise UserError(Problem("DVC", " ".join(str(error).split()), fix)) from None


def open_project(folder: Path) -> "Repo":
    """The DVC project in a folder.

    Raises:
        UserError: there is none.
    """
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)  # it tells on stdout what it would do
    with asking_dvc():
        return Repo(str(folder))


def choose(repo: "Repo", stage: str, keys: Sequence[str]) -> list[str]:
    """The names of the instances of a stage, such as `train@alps`: those of the keys, or all.

    Raises:
        UserError: there is no such stage or key, or what it makes cannot be shared.
    """
    instances = _instances(repo, stage)
    names = [f"{stage}@{key}" for key in keys]
    problems = [
        Problem(f"stage {stage}", f"there is no key {name.partition('@')[2]!r}", f"There are: {_few(instances)}.")
        for name in names
        if name not in instances
    ]
    if problems:
        raise UserError(*problems)
    _require_kept(instances[next(iter(instances))], stage)
    return list(dict.fromkeys(names)) or list(instances)


def find_stale(repo: "Repo", names: Sequence[str]) -> list[str]:
    """Those of the instances that `dvc repro` would have to compute: what a worker has finished it only fetches.

    Raises:
        UserError: they wait for other stages, whose results may change what they are made from.
    """
    stage = names[0].partition("@")[0]
    with asking_dvc():
        # The whole stage at once: for each name DVC would read its files anew.
        would_run = {one.addressing: one for one in repo.reproduce([stage], dry=True, allow_missing=True)}
        if waiting := sorted(_above(repo, names) & would_run.keys()):
            fix = f"Run `dvc repro {' '.join(waiting[:SHOWN])}` first; `morphline fan-out` shares out such stages, too."
            raise UserError(Problem(f"stage {stage}", f"it waits for {_few(waiting)}", fix))
        return [name for name in names if name in would_run and not _is_finished(repo, would_run[name])]


def inputs_of(repo: "Repo", names: Sequence[str]) -> list[str]:
    """What makes the inputs of these instances: names of other stages, and .dvc files."""
    graph = repo.index.graph
    stages = [stage for stage in graph if stage.addressing in set(names)]
    return sorted({needed.addressing for stage in stages for needed in graph.successors(stage)})


def fetch(repo: "Repo", stages: Sequence[str], remote: str | None) -> None:
    """Put what the stages made into their places, from the cache, or from a remote.

    Raises:
        UserError: it is not there.
    """
    if not stages:
        return
    fix = "`dvc repro` in the project makes what is missing, `dvc pull` fetches it."
    with asking_dvc(fix), chdir(repo.root_dir):  # DVC takes names as relative to the working folder
        if remote:
            repo.fetch(list(stages), remote=remote)
        repo.checkout(list(stages), force=True)


def push(repo: "Repo", names: Sequence[str], remote: str) -> None:
    """Send what these instances made, and the record of their runs, to a remote.

    Raises:
        UserError: it does not take them.
    """
    with asking_dvc(f"Look after the remote {remote}, and run the same again."), chdir(repo.root_dir):
        repo.push(list(names), remote=remote)
        own = {stage.cmd for stage in repo.index.stages if stage.addressing in set(names)}
        runs = repo.stage_cache.push(remote)
        runs = [run for run in runs if (repo.stage_cache._load_cache(*run) or {}).get("cmd") in own]
        # A plot that is not in DVC's cache is kept for these records alone, and `dvc push` leaves it out.
        for objects in repo.stage_cache.get_used_objs(runs).values():
            repo.cloud.push([one for one in objects if repo.cache.local.exists(one.value)], remote=remote)


def _above(repo: "Repo", names: Sequence[str]) -> set[str]:
    """All that these instances depend on, near and far."""
    graph, asked = repo.index.graph, set(names)
    waiting = [stage for stage in graph if stage.addressing in asked]
    seen = set(waiting)
    while waiting:
        new = set(graph.successors(waiting.pop())) - seen
        seen |= new
        waiting += new
    return {stage.addressing for stage in seen} - asked


def _instances(repo: "Repo", stage: str) -> "dict[str, PipelineStage]":
    with asking_dvc():
        own = [one for one in repo.index.stages if os.path.dirname(one.path) == repo.root_dir]
    named = {one.addressing: one for one in own if "." not in one.addressing}
    found = {name: one for name, one in named.items() if name.partition("@")[0] == stage}
    if not found:
        there = dict.fromkeys(name.partition("@")[0] for name in named)
        raise UserError(Problem("dvc.yaml", f"there is no stage {stage!r}", f"There are: {', '.join(there)}."))
    return found


def _require_kept(one: "PipelineStage", stage: str) -> None:
    """DVC keeps no record of a run with an output that is neither in the cache nor a plot or metric."""
    loose = [out for out in one.outs if not (out.use_cache or out.is_plot or out.is_metric)]
    if loose or one.frozen or not one.deps:
        found = "DVC keeps no record of its runs, so that what a worker makes is lost"
        raise UserError(Problem(f"stage {stage}", found, f"Run `dvc repro {stage}` here."))


def _is_finished(repo: "Repo", stage: "PipelineStage") -> bool:
    """Whether DVC's run-cache has its result, from the inputs of now."""
    from dvc.stage.cache import RunCacheNotFoundError
    from dvc_data.hashfile.hash_info import HashInfo

    stage.save_deps(allow_missing=True)
    for out in stage.outs:
        out.hash_info = HashInfo()  # what dvc.lock says was made from the inputs of before
    try:
        repo.stage_cache.restore(stage, dry=True)
    except RunCacheNotFoundError:
        return False
    return True


def _few(names: Sequence[str] | dict[str, object]) -> str:
    shown = list(names)
    more = len(shown) - SHOWN
    return ", ".join(shown[:SHOWN]) + (f" and {more} more" if more > 0 else "")
