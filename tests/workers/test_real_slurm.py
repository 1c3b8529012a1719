"""Workers on a real SLURM, of one node, which is this machine: started for the test out of what is installed."""

import getpass
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.workers.project import KEYS, log_of, morphline, ran
from tests.workers.test_fan_out import KILLED, begun, check_killed_key_alone_is_left

PROGRAMS = ("sbatch", "squeue", "sinfo", "scancel", "slurmctld", "slurmd")
# Four tasks at once on however many cores there are; without MUNGE, cgroups and accounting.
CONFIG = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_min_interval=1
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
PATIENCE = 300.0


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A controller and a node, which the commands of SLURM find by SLURM_CONF."""
    if lacking := [name for name in PROGRAMS if not shutil.which(name)]:
        pytest.skip(f"not installed: {', '.join(lacking)} (apt install slurm-wlm)")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [one.getsockname()[1] for one in free]
    for one in free:
        one.close()
    conf = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    conf.write_text(CONFIG.format(host=host, ports=ports, user=getpass.getuser(), folder=folder))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    daemons = []
    try:
        for program in ("slurmctld", "slurmd"):
            with (folder / f"{program}.log").open("w") as log:
                daemons.append(subprocess.Popen([program, "-D"], stdout=log, stderr=log))

        def is_idle() -> bool:
            assert all(daemon.poll() is None for daemon in daemons), [
                path.read_text() for path in folder.glob("slurm*.log")
            ]
            done = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
            return done.stdout.strip() == "idle"

        wait_until(is_idle)
        yield
    finally:
        subprocess.run(["scancel", "--user", getpass.getuser()], capture_output=True)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def submit(project: Path, *arguments: str) -> str:
    """The number of the job that `fan-out` has handed over."""
    scratch = str(project.parent / "scratch")
    said = morphline(project, "fan-out", "train", "--on", "slurm", "--scratch", scratch, *arguments).stdout
    found = re.fullmatch(r"train: 12 keys in (?:12|6) elements of job (\d+); afterwards: `dvc repro train`\n", said)
    assert found, said
    return found[1]


def is_over(job: str) -> bool:
    done = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True)
    return not done.stdout.strip()  # of a job that is long over it knows nothing, and says so elsewhere


def test_twelve_keys_four_elements_at_once_and_one_killed(cluster: None, many: Path) -> None:
    gate = log_of(many).with_name(f"wait-train-{KILLED}")
    gate.touch()
    job = submit(many, "-j", "4", "--retries", "0")
    wait_until(lambda: begun(many, KILLED))
    stage = psutil.Process(begun(many, KILLED))
    (worker,) = [one for one in stage.parents() if one.cmdline()[1:4] == ["-m", "pipeline", "work"]]
    worker.kill()
    stage.wait(60)
    gate.unlink()
    wait_until(lambda: is_over(job))
    logs = {path.stem: path.read_text() for path in (many / ".work/fan-out").glob("train-*.log")}
    assert sorted(logs) == sorted(f"train-{number}" for number in range(12))
    assert f"Running stage 'train@{KEYS[0]}'" in logs["train-0"]
    check_killed_key_alone_is_left(many, 1, f"1 of 12 failed: train@{KILLED}")


def test_elements_of_two_keys_make_everything(cluster: None, many: Path) -> None:
    job = submit(many, "-j", "2", "--keys-each", "2")
    wait_until(lambda: is_over(job))
    assert ran(many) == [f"train@{key}" for key in KEYS]
    assert morphline(many, "fan-out", "train", "--list").stdout == ""
    assert not list((many.parent / "scratch").glob("*"))
