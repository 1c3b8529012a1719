"""What many keys cost DVC, and what workers gain: `python -m tests.benchmarks.scale`.

The stages copy a small file, so that DVC alone is measured: its state for so many keys is written out directly, and
`dvc status` confirms it. For the workers a stage waits so many seconds (`--wait`), as one does for a GPU. Prints wall
and processor seconds; on a busy machine the latter tell more.
"""

import argparse
import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.project import ROOT, tiny_params
from tests.workers.project import SET, dvc, git, keys_of, make_many, morphline, ran

DVC_YAML = """\
stages:
  train:
    foreach: ${sets}
    do:
      cmd: cp data/raw/${key}.txt data/made/${key}.txt
      deps: ["data/raw/${key}.txt"]
      outs: ["data/made/${key}.txt"]
"""
ENTRY = """\
  train@{key}:
    cmd: cp data/raw/{key}.txt data/made/{key}.txt
    deps:
    - path: data/raw/{key}.txt
      hash: md5
      md5: {md5}
      size: {size}
    outs:
    - path: data/made/{key}.txt
      hash: md5
      md5: {md5}
      size: {size}
"""


def make_finished(folder: Path, keys: Sequence[str]) -> Path:
    """A project in which every key is made: workspace, cache and dvc.lock as `dvc repro` leaves them."""
    for name in ("data/raw", "data/made", ".dvc"):
        (folder / name).mkdir(parents=True)
    lock = "schema: '2.0'\nstages:\n"
    for key in keys:
        text = f"pictures of {key}\n".encode()
        md5 = hashlib.md5(text, usedforsecurity=False).hexdigest()
        for place in (f"data/raw/{key}.txt", f"data/made/{key}.txt", f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}"):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(text)
        lock += ENTRY.format(key=key, md5=md5, size=len(text))
    (folder / "dvc.lock").write_text(lock)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text(tiny_params({}, sets="".join(SET.format(key=key) for key in keys), morphs=""))
    (folder / ".gitignore").write_text("/data/made\n/.work/\n/mlflow.db*\n")
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "Begin")
    return folder


def measured(action: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of the processes that an action starts and waits for."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    action()
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def told(times: Sequence[tuple[float, float]]) -> str:
    """Medians."""
    wall, processor = (statistics.median(part) for part in zip(*times, strict=True))
    return f"{wall:.1f} ({processor:.1f})"


def measure_keys(top: Path, count: int, repeats: int) -> list[str]:
    """A row of the first table."""
    project = make_finished(top / str(count) / "project", keys_of(count))
    status = dvc(project, "status").stdout
    assert "up to date" in status, status
    changed = project / f"data/raw/{keys_of(count)[count // 2]}.txt"
    number = 0

    def change() -> None:
        nonlocal number
        number += 1
        changed.write_text(f"others, for the {number}. time\n")

    rows = [str(count)]
    for command in ("status", "repro"):
        rows.append(told([measured(partial(dvc, project, command)) for _ in range(repeats)]))
    times = []
    for _ in range(repeats):
        change()
        times.append(measured(lambda: dvc(project, "repro")))
    rows.append(told(times))
    change()
    rows.append(told([measured(lambda: morphline(project, "fan-out", "train", "--list")) for _ in range(repeats)]))
    rows.append(f"{(project / 'dvc.lock').stat().st_size / 1e3:.0f}")
    return rows


def measure_workers(top: Path, workers: int, keys: int, wait: float, database: Path) -> list[str]:
    """A row of the second table; workers: 0 for `dvc repro` alone."""
    project = make_many(top / f"workers-{workers}/project", keys_of(keys), database)
    stage = project / "stage.py"
    stage.write_text(stage.read_text() + f"if stage == 'train': time.sleep({wait})\n")
    dvc(project, "repro", "prepare")
    ran(project)
    if not workers:
        return ["`dvc repro`", told([measured(lambda: dvc(project, "repro", "train"))]), ""]
    shared = measured(lambda: morphline(project, "fan-out", "train", "-j", str(workers)))
    assert len(ran(project)) == keys
    taken = measured(lambda: dvc(project, "repro", "train"))
    assert not ran(project)
    return [f"{workers}", told([shared]), told([taken])]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2, 4])
    parser.add_argument("--each", type=int, default=8, help="keys for the workers")
    parser.add_argument("--wait", type=float, default=20.0, help="seconds of their stages")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f} before; wall seconds (processor seconds)\n")
    with tempfile.TemporaryDirectory() as place:
        top = Path(place).resolve()
        print("| keys | `dvc status` | `dvc repro`, nothing to do | one changed | `fan-out --list` | dvc.lock, kB |")
        print("|---|---|---|---|---|---|")
        for count in arguments.keys:
            print(f"| {' | '.join(measure_keys(top, count, arguments.repeats))} |", flush=True)
        if not arguments.workers:
            return
        code = "import sys, mlflow; mlflow.MlflowClient(f'sqlite:///{sys.argv[1]}').search_experiments()"
        subprocess.run([sys.executable, "-c", code, str(top / "empty.db")], check=True, capture_output=True)
        print(f"\n{arguments.each} keys of {arguments.wait:g} s\n")
        print("| workers | `fan-out` | `dvc repro` after |\n|---|---|---|")
        for workers in arguments.workers:
            row = measure_workers(top, workers, arguments.each, arguments.wait, top / "empty.db")
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
