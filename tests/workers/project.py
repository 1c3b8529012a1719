"""A project of many keys whose stages take a moment, so that what is tested is the sharing out."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.project import ROOT, tiny_params

SET = "  {key}: {{adapter: image, prepare: {{}}, train: {{}}, sample: {{}}}}\n"
DVC_YAML = """\
stages:
  prepare:
    foreach: ${sets}
    do:
      cmd: python stage.py prepare ${key}
      deps: ["data/raw/${key}.txt", stage.py]
      outs: ["data/prepared/${key}.txt"]
  train:
    foreach: ${sets}
    do:
      cmd: python stage.py train ${key}
      deps: ["data/prepared/${key}.txt", stage.py]
      params: [train.seed]
      outs: ["models/adapters/${key}"]
      plots: [{"reports/${key}.csv": {cache: false}}]
  measure:
    foreach: ${sets}
    do:
      cmd: python stage.py measure ${key}
      deps: ["models/adapters/${key}"]
      outs: [{"reports/${key}.json": {cache: false}}]
"""
# Each run is noted in a log outside of the project: which stage, for which key, in which process.
STAGE = """\
import os, pathlib, sys, time
stage, key = sys.argv[1:]
log = pathlib.Path(os.environ["STAGE_LOG"])
with log.open("a") as file:
    file.write(f"{stage}@{key} {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}\\n")
raw, prepared, adapter = (pathlib.Path(way.format(key)) for way in
                          ("data/raw/{}.txt", "data/prepared/{}.txt", "models/adapters/{}/a"))
source, made = (raw, prepared) if stage == "prepare" else (prepared, adapter)
text = source.read_text()
wait = log.with_name(f"wait-{stage}-{key}")
while wait.exists():
    time.sleep(0.05)
if "wrong" in text and stage == "train":
    sys.exit(3)
made.parent.mkdir(parents=True, exist_ok=True)
made.write_text(f"{stage} of {text}")
if stage == "train":
    pathlib.Path("reports").mkdir(exist_ok=True)
    pathlib.Path(f"reports/{key}.csv").write_text("step,loss\\n0,1\\n")
"""


def keys_of(count: int) -> list[str]:
    return [f"k{number:04}" for number in range(count)]


KEYS = keys_of(12)


def run(folder: Path, *command: str, check: bool = True, **variables: str) -> "subprocess.CompletedProcess[str]":
    """A command in the project, with the stages' log beside it."""
    done = subprocess.run(command, cwd=folder, env=environment(folder, **variables), capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


def environment(folder: Path, **variables: str) -> dict[str, str]:
    bare = {name: text for name, text in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    first = os.pathsep.join([str(Path(sys.executable).parent), bare["PATH"]])
    return {**bare, "PATH": first, "PYTHONPATH": str(ROOT), "STAGE_LOG": str(log_of(folder)), **variables}


def log_of(folder: Path) -> Path:
    return folder.parent / "log.txt"


def dvc(folder: Path, *arguments: str, **more: object) -> "subprocess.CompletedProcess[str]":
    return run(folder, sys.executable, "-m", "dvc", *arguments, **more)  # type: ignore[arg-type]


def morphline(folder: Path, *arguments: str, **more: object) -> "subprocess.CompletedProcess[str]":
    return run(folder, sys.executable, "-m", "pipeline", *arguments, **more)  # type: ignore[arg-type]


def git(folder: Path, *arguments: str) -> str:
    return run(folder, "git", "-c", "user.name=A", "-c", "user.email=a@b", *arguments).stdout


def ran(folder: Path) -> list[str]:
    """The stages that ran since the last time that this was asked."""
    log = log_of(folder)
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return sorted(line.split()[0] for line in lines)


def make_many(folder: Path, keys: Sequence[str], database: Path | None = None) -> Path:
    """A committed project, whose prepared sets are made."""
    (folder / "data/raw").mkdir(parents=True)
    for key in keys:
        (folder / f"data/raw/{key}.txt").write_text(f"pictures of {key}\n")
    sets = "".join(SET.format(key=key) for key in keys)
    (folder / "params.yaml").write_text(tiny_params({"tracking.uri": "null"}, sets=sets, morphs=""))
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "stage.py").write_text(STAGE)
    (folder / ".gitignore").write_text("/data/prepared\n/models\n/.work/\n/mlflow.db*\n/mlartifacts/\n")
    (folder / "reports").mkdir()
    (folder / "reports/.gitkeep").touch()
    if database:
        (folder / "mlflow.db").write_bytes(database.read_bytes())
    git(folder, "init", "-q", "-b", "main")
    (folder / ".dvc").mkdir()
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    dvc(folder, "repro", "prepare")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "Prepare")
    ran(folder)
    return folder
