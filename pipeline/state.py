"""What the pipeline's state is: where the project lies, its commit, experiment, and DVC's record of its data."""

import functools
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


def workspace() -> Path:
    """The checkout that this stage runs in: the nearest folder upward that holds dvc.yaml or params.yaml."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() or (folder / "params.yaml").is_file():
            return folder
    return here


def project_top() -> Path:
    """Where the dashboard lies. Not the workspace under `dvc exp run --temp`: DVC_ROOT stays at the main checkout."""
    root = os.environ.get("DVC_ROOT")
    return Path(root).resolve() if root else workspace()


@dataclass(frozen=True)
class PipelineState:
    """What one parent run stands for.

    digest: the same for all stages of one state: of the DVC experiment, else of the commit, params.yaml and dvc.yaml.
    name: for people, with a + after the commit where files were edited. commit, branch, subject: empty outside Git,
    branch also where none is checked out. edited: files that differ from the commit, the pipeline's own outputs apart.
    """

    digest: str
    name: str
    commit: str
    branch: str
    subject: str
    edited: tuple[str, ...]
    experiment: str


def read_state() -> PipelineState:
    """The state of the checkout that this stage runs in."""
    top = workspace()
    commit, _, subject = _git(top, "log", "-1", "--format=%H %s").partition(" ")
    branch = _git(top, "branch", "--show-current") if commit else ""
    edited = _edited(top) if commit else ()
    experiment = os.environ.get("DVC_EXP_NAME", "")
    if experiment:
        parts = ["experiment", experiment, os.environ.get("DVC_EXP_BASELINE_REV", commit)]
        name = experiment
    else:
        parts = ["commit", commit or str(top), *(_md5(top / file) for file in ("params.yaml", "dvc.yaml"))]
        name = f"{commit[:7]}{'+' if edited else ''} {subject}" if commit else top.name
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return PipelineState(digest, name, commit, branch, subject, edited, experiment)


def dataset_digest(path: Path) -> str:
    """DVC's hash of a file or folder, read from the entry of the stage (or .dvc file) that makes it.

    Never from a consumer's `deps`: during a stage dvc.lock may still hold that stage's previous entry. What DVC
    does not make (raw pictures in Git) is hashed as DVC would hash it, so that the digest equals the one in dvc.lock.
    """
    top = workspace()
    place = place_of(path)
    for entry in _outs(top):
        if entry.get("path") == place and entry.get("md5"):
            return str(entry["md5"])
    beside = _load(path.parent / f"{path.name}.dvc")
    for entry in beside.get("outs") or ():
        if entry.get("md5"):
            return str(entry["md5"])
    return content_digest(path)


def place_of(path: Path) -> str:
    """A path as dvc.yaml writes it: relative to the checkout, with slashes."""
    return Path(os.path.relpath(path.resolve(), workspace().resolve())).as_posix()


def content_digest(path: Path) -> str:
    """MD5 as DVC computes it: of a file's bytes, or of the JSON list of a folder's files (then `<md5>.dir`)."""
    if path.is_file():
        return _md5(path)
    names = [
        os.path.relpath(os.path.join(folder, name), path).replace(os.sep, "/")
        for folder, _, files in os.walk(path, followlinks=True)
        if "__pycache__" not in Path(folder).parts
        for name in files
    ]
    # Entry by entry: the listing of a set of a hundred thousand would be a hundred megabytes.
    total, before = hashlib.md5(usedforsecurity=False), "["
    for name in sorted(names):
        if (path / name).is_file():
            entry = json.dumps({"md5": _md5(path / name), "relpath": name}, sort_keys=True)
            total.update(f"{before}{entry}".encode())
            before = ", "
    total.update(b"]" if before == ", " else b"[]")
    return f"{total.hexdigest()}.dir"


def locked_stages() -> list[str]:
    """Stage instances that dvc.lock has a result of and dvc.yaml still names, in dvc.yaml's order."""
    top = workspace()
    order = list(_load(top / "dvc.yaml").get("stages") or ())
    names = [name for name in _load(top / "dvc.lock").get("stages") or () if name.partition("@")[0] in order]
    return sorted(names, key=lambda name: (order.index(name.partition("@")[0]), name))


def locked_dependency(stage: str, path: Path) -> str | None:
    """DVC's hash of a file or folder as a stage read it when it ran last; None where dvc.lock does not say."""
    entry = (_load(workspace() / "dvc.lock").get("stages") or {}).get(stage) or {}
    found = [one for one in entry.get("deps") or () if one.get("path") == place_of(path)]
    return str(found[0]["md5"]) if found and found[0].get("md5") else None


def _outs(top: Path) -> Iterator[dict[str, Any]]:
    for stage in (_load(top / "dvc.lock").get("stages") or {}).values():
        yield from stage.get("outs") or ()


def _edited(top: Path) -> tuple[str, ...]:
    made = {"dvc.lock", *(str(entry.get("path", "")) for entry in _outs(top))}
    status = _git(top, "status", "--porcelain", "--no-renames", "--untracked-files=no", "-z", "--", ".")
    prefix = _git(top, "rev-parse", "--show-prefix")
    names = [line[3:].removeprefix(prefix) for line in status.split("\0") if line]
    return tuple(name for name in names if not any(f"{name}/".startswith(f"{out}/") for out in made))


def _git(folder: Path, *arguments: str) -> str:
    """Git's answer, empty where there is no Git or no repository: tracking can do without."""
    try:
        answer = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip("\n")


def _load(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}


@functools.cache
def _parse(content: bytes) -> dict[str, Any]:
    # In C where there is libyaml: in Python a dvc.lock takes a quarter of a second. Names, paths and digests are text
    # here, so nothing is read as a number or a truth, of which YAML 1.1 knows more than DVC.
    parsed = yaml.load(content.decode("utf-8"), Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    return parsed if isinstance(parsed, dict) else {}


def _md5(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
