"""Two hosts, as two network namespaces of this machine with a cable between them, train one adapter and make a morph.

They share the project's folder, as hosts of a cluster do. Skipped where namespaces cannot be made: it takes root and
`ip` (Debian: iproute2).
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.stages import morph, prepare
from tests.project import ROOT, contents, edit, with_values
from tests.stages.test_train_interrupted import header, wait_for_step
from tests.stages.test_train_processes import morphline

PAGE = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
LIMIT = 240  # seconds that a launch may take


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20).stdout


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two namespaces; their addresses are 10.77.0.1 and 10.77.0.2, of their network cards `cable0` and `cable1`."""
    names = [f"morphline-{os.getpid()}-{number}" for number in range(2)]
    # Who stops the tests by SIGTERM leaves nothing either.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            first, second = names
            ip("-n", first, "link", "add", "cable0", "type", "veth", "peer", "name", "cable1", "netns", second)
            for number, name in enumerate(names):
                ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"cable{number}")
                ip("-n", name, "link", "set", f"cable{number}", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', '') or error}")
        yield names
    finally:
        for name in names:
            with suppress(OSError, subprocess.SubprocessError):
                for process in pids(name):
                    os.kill(process, signal.SIGKILL)
            with suppress(OSError, subprocess.SubprocessError):
                ip("netns", "del", name)  # and the cable with it
        signal.signal(signal.SIGTERM, before)


def page_command(rank: int, *command: str) -> list[str]:
    """The command of docs/scale.md for one host, with one process on each."""
    (block,) = re.findall(r"```\n(accelerate launch.*?)```", PAGE, flags=re.DOTALL)
    words = shlex.split(block.replace("\\\n", " "))
    assert words[:2] == ["accelerate", "launch"] and words[-2:] == ["train", "<set>"]
    given = {"--num_processes": "2", "--main_process_ip": "10.77.0.1", "--machine_rank": str(rank)}
    for name, value in given.items():
        words[words.index(name) + 1] = value
    return [sys.executable, "-m", "accelerate.commands.launch", *words[2:-2], *command]


def pids(host: str) -> list[int]:
    return [int(process) for process in ip("netns", "pids", host).split()]


def launched(
    hosts: list[str],
    *command: str,
    meanwhile: Callable[[Sequence["subprocess.Popen[str]"]], object] = lambda running: None,
) -> list[subprocess.CompletedProcess[str]]:
    """As docs/scale.md has it, one process on each host. meanwhile: what is done once they are started."""
    running = []
    try:
        for rank, host in enumerate(hosts):
            line = ["ip", "netns", "exec", host, *page_command(rank, *command)]
            environment = {
                **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
                "GLOO_SOCKET_IFNAME": f"cable{rank}", "RES_OPTIONS": "timeout:1 attempts:1",
            }  # fmt: skip
            running.append(
                subprocess.Popen(
                    line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                    start_new_session=True,
                )
            )  # fmt: skip
        meanwhile(running)
        said = [process.communicate(timeout=LIMIT) for process in running]
        return [
            subprocess.CompletedProcess(process.args, process.returncode, *words)
            for process, words in zip(running, said, strict=True)
        ]
    finally:
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # a launcher ends what it has started


def adapters(project: Path) -> dict[str, bytes]:
    return contents(project / "models/adapters")


def test_two_hosts_give_what_two_processes_of_one_give(project: Path, hosts: list[str]) -> None:
    """One adapter trained by both, the same bytes; its morph made by both, the bytes of one process even."""
    prepare.run("dots")
    values = {"machine.reuse": "false", "machine.batch": 2, "morph.pacing": "perceptual"}
    edit(project / "params.yaml", lambda text: with_values(text, values))
    for host, done in enumerate(launched(hosts, "train", "dots")):
        assert done.returncode == 0, (host, done.stderr)
    trained = adapters(project)
    for host, done in enumerate(launched(hosts, "frames", "dots")):
        assert done.returncode == 0, (host, done.stderr)
    made = contents(project / "data/morphs")
    shutil.rmtree(project / "data/morphs")
    morph.run("dots")
    assert contents(project / "data/morphs") == made
    edit(project / "params.yaml", lambda text: with_values(text, {"machine.processes": 2}))
    done = morphline("train", "dots")
    assert done.returncode == 0, done.stderr
    assert adapters(project) == trained


def test_a_host_that_is_killed_and_started_again_changes_no_byte(project: Path, hosts: list[str]) -> None:
    """All that runs on one of them dies at once, as when a machine does; the other ends then, and says so."""
    prepare.run("dots")
    values = {"machine.reuse": "false", "machine.checkpoint_every": 2}
    edit(
        project / "params.yaml",
        lambda text: with_values(text, values).replace("train: {steps: 4}", "train: {steps: 40}"),
    )
    work, lost = project / ".work/adapters", 1

    def kill_one(running: Sequence["subprocess.Popen[str]"]) -> None:
        wait_for_step(running[0], work, 4)
        for process in pids(hosts[lost]):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    codes = [one.returncode for one in launched(hosts, "train", "dots", meanwhile=kill_one)]
    assert codes[lost] == -signal.SIGKILL and codes[1 - lost] > 0
    assert not (project / "models/adapters/dots").exists()
    (checkpoint,) = work.glob("*/checkpoint.safetensors")
    assert 4 <= int(header(checkpoint)["__metadata__"]["step"]) < 40
    for host, done in enumerate(launched(hosts, "train", "dots")):
        assert done.returncode == 0, (host, done.stderr)
    disturbed = adapters(project)
    shutil.rmtree(project / "models/adapters")
    for host, done in enumerate(launched(hosts, "train", "dots")):
        assert done.returncode == 0, (host, done.stderr)
    assert adapters(project) == disturbed
