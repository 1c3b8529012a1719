"""`morphline work`: stages of some keys, run in a clone in scratch space that shares DVC's cache. Not a DVC stage.

In one workspace DVC runs one stage after the other. Clones that share a cache run as many as there are; then `dvc
repro` in the project finds their results in the run-cache, takes them, and writes dvc.lock.
"""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pipeline.errors import Problem, UserError
from pipeline.params import Params, load_params
from pipeline.state import workspace
from pipeline.tracking import bring_home, worker_database
from pipeline.workers.groups import leashed, stopped_by_sigterm, undisturbed
from pipeline.workers.scratch import Scratch, left_behind, link_missing, scratch_clone
from pipeline.workers.stages import choose, fetch, find_stale, inputs_of, open_project, push

if TYPE_CHECKING:
    from dvc.repo import Repo

OF_STAGE = re.compile(rb"exited with (-?\d+)")
"""How DVC ends its account of a stage that failed; its own exit code is 255 always."""


def run(stage: str, keys: Sequence[str], remote: str | None = None, place: Path | None = None) -> int:
    """Run the instances of a stage in a clone, and bring their tracked runs home; the exit code of the first that
    failed, or 0.

    keys: none: those that need work. remote: a DVC remote to fetch from and to push to, instead of the project's own
    cache. place: the folder for the clone; None: the system's for temporary files.

    Raises:
        UserError: no such stage, key or remote, or a project that cannot be cloned.
    """
    params, home = load_params(), workspace().resolve()
    repo = open_project(home)
    names = choose(repo, stage, keys)
    require_remote(repo, remote)
    if not keys:
        names = find_stale(repo, names)
    inputs, cache = inputs_of(repo, names), repo.cache.legacy.path
    repo.close()
    if not names:
        print(f"{stage}: nothing to do")
        return 0
    for left in left_behind(home, place):
        left.keep = not bring_home(params.tracking, left.database)
        left.delete()
    with stopped_by_sigterm(), scratch_clone(home, place, None if remote else cache, remote) as scratch:
        environment = worker_database(params.tracking, scratch.database)
        link_missing(home, scratch.project, models_of(params))
        try:
            return _work(scratch, names, inputs, environment, remote)
        finally:
            with undisturbed():
                scratch.keep = not bring_home(params.tracking, scratch.database)


def require_remote(repo: "Repo", remote: str | None) -> None:
    """Raises UserError for a DVC remote that the project has not."""
    if remote and remote not in repo.config["remote"]:
        there = ", ".join(repo.config["remote"]) or "none"
        raise UserError(Problem(f"--remote {remote}", "there is no such DVC remote", f"There are: {there}."))


def models_of(params: Params) -> list[str]:
    """Paths in params.yaml of what Git and DVC need not know: it is pinned by its digest."""
    sections = [params.base, params.refiner, *(spec.edit.control for spec in params.edits.values())]
    names = [getattr(section, name, None) for section in sections for name in ("source", "config")]
    names += [one.file for one in params.base.adapters]
    return sorted({name for name in [*names, params.evaluate.lpips] if name})


def _work(
    scratch: Scratch, names: Sequence[str], inputs: Sequence[str], environment: Mapping[str, str], remote: str | None
) -> int:
    """Inputs from the cache or the remote, the stages, and what they made to the remote; an exit code."""
    fetch(open_project(scratch.project), inputs, remote)
    options = ["--single-item", "--keep-going", *(["--pull"] if remote else [])]
    code = _dvc(scratch, ["repro", *options, *names], environment)
    if remote:
        push(open_project(scratch.project), names, remote)  # opened anew: the stages have run
    return code


def _dvc(scratch: Scratch, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run DVC in the clone, with the clone's own code; the exit code of the first stage that failed, else DVC's."""
    package = [str(scratch.project)] if (scratch.project / "pipeline").is_dir() else []
    own = {name: text for name, text in environment.items() if not name.startswith("DVC_")}
    own["PYTHONPATH"] = os.pathsep.join([*package, *filter(None, [environment.get("PYTHONPATH")])])
    said = bytearray()
    command = [sys.executable, "-m", "dvc", *arguments]
    with leashed(command, scratch.project, own, errors=subprocess.PIPE) as process:
        assert process.stderr
        telling = threading.Thread(target=_tell, args=(process.stderr, said), daemon=True)
        telling.start()
        ended = process.wait()
        telling.join(5.0)
    found = OF_STAGE.search(said)
    code = int(found[1]) if found and ended else ended
    return 128 - code if code < 0 else code


def _tell(stream: IO[bytes], said: bytearray) -> None:
    """Pass on what is written to stderr, and remember the last of it."""
    while part := os.read(stream.fileno(), 65536):
        sys.stderr.buffer.write(part)
        sys.stderr.flush()
        said += part
        del said[:-200_000]
