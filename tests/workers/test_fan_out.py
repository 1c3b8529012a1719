"""Many keys shared out among workers: what `dvc repro` finds afterwards, also when a worker was killed."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.project import contents
from tests.workers.project import KEYS, dvc, environment, log_of, morphline, ran

KILLED = KEYS[5]


def made(project: Path) -> dict[str, bytes]:
    """What the stages made, and dvc.lock, which has its hashes."""
    files = {name: data for name, data in contents(project / "models").items()}
    return {**files, "dvc.lock": (project / "dvc.lock").read_bytes(), **contents(project / "reports")}


def wait_for(condition: object, process: "subprocess.Popen[str]", seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert process.poll() is None and time.monotonic() < until, process.communicate(timeout=60)[0]
        time.sleep(0.05)


def begun(project: Path, key: str) -> int:
    """The process of a stage's command; 0 before it begins."""
    lines = log_of(project).read_text().splitlines() if log_of(project).exists() else []
    found = [line.split()[1] for line in lines if line.startswith(f"train@{key} ")]
    return int(found[-1]) if found else 0


def fan_out(project: Path, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "fan-out", "train", *arguments], cwd=project,
        env=environment(project, **variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def kill_one(project: Path, *arguments: str) -> tuple[int, str]:
    """Share out `train` with a SIGKILL to the worker of one key at its stage; the exit code, and what was said."""
    gate = log_of(project).with_name(f"wait-train-{KILLED}")
    gate.touch()
    process = fan_out(project, *arguments)
    try:
        wait_for(lambda: begun(project, KILLED), process)
        stage = psutil.Process(begun(project, KILLED))
        (worker,) = [one for one in stage.parents() if one.cmdline()[1:4] == ["-m", "pipeline", "work"]]
        worker.kill()
        stage.wait(60)
        gate.unlink()
        said = process.communicate(timeout=600)[0]
    finally:
        process.kill()
    return process.returncode, said


def check_killed_key_alone_is_left(project: Path, code: int, said: str) -> None:
    """The bar: `dvc repro` reruns the killed key and no other, and what is there then is that of a serial run."""
    assert code == 1 and f"1 of 12 failed: train@{KILLED}" in said, said
    assert ran(project) == [f"train@{key}" for key in KEYS], "each key ran once"
    assert morphline(project, "fan-out", "train", "--list").stdout == f"{KILLED}\n"
    dvc(project, "repro", "train")
    assert ran(project) == [f"train@{KILLED}"]
    parallel = made(project)
    dvc(project, "repro", "--force", "train")
    assert len(ran(project)) == 24, "a serial run makes everything anew"
    assert made(project) == parallel


def test_twelve_keys_four_workers_and_one_killed(many: Path) -> None:
    code, said = kill_one(many, "-j", "4", "--retries", "0", "--scratch", str(many.parent / "scratch"))
    check_killed_key_alone_is_left(many, code, said)


def test_the_same_through_ray(many: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    options = ("-j", "4", "--retries", "0", "--scratch", str(many.parent / "scratch"))
    code, said = kill_one(many, "--on", "ray", *options)
    check_killed_key_alone_is_left(many, code, said)


def test_a_machine_of_the_cluster_is_lost_and_its_keys_are_made_on_the_other(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes of Ray on this machine, with two workers on each when all of one of them is gone at once."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    from ray.cluster_utils import Cluster

    for name, text in environment(many).items():  # workers have that of their node
        monkeypatch.setenv(name, text)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        other, first = cluster.add_node(num_cpus=2), KEYS[:4]
        gates = [log_of(many).with_name(f"wait-train-{key}") for key in first]
        for gate in gates:
            gate.touch()
        options = ("--on", "ray", "-j", "4", "--retries", "2", "--scratch", str(many.parent / "scratch"))
        process = fan_out(many, *options, RAY_ADDRESS=cluster.address)
        try:
            wait_for(lambda: all(begun(many, key) for key in first), process)
            at_work = [begun(many, key) for key in first]
            cluster.remove_node(other, allow_graceful=False)
            wait_for(lambda: not all(map(psutil.pid_exists, at_work)), process)
            for gate in gates:
                gate.unlink()
            said = process.communicate(timeout=600)[0]
        finally:
            process.kill()
    finally:
        cluster.shutdown()
    assert process.returncode == 0, said
    assert said.count(": done\n") == 12, said
    runs = ran(many)
    assert len(runs) > 12, "what was lost on the way ran again"
    assert set(runs) == {f"train@{key}" for key in KEYS} and runs.count(f"train@{KEYS[-1]}") == 1
    dvc(many, "repro", "train")
    assert not ran(many)
    parallel = made(many)
    dvc(many, "repro", "--force", "train")
    ran(many)
    assert made(many) == parallel
