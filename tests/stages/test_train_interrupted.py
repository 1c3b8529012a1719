"""Trainings that are stopped, killed, started twice, or fail."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.stages import prepare, train
from tests.project import ROOT, contents, edit, with_values


def header(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


STEPS = 30


@pytest.fixture
def long_project(project: Path) -> Path:
    """Prepared, and with enough steps to be disturbed in."""
    edit(project / "params.yaml", lambda text: with_values(text, {"machine.checkpoint_every": 2}))
    edit(
        project / "params.yaml", lambda text: text.replace("train: {steps: 4}", f"train: {{steps: {STEPS}, batch: 1}}")
    )
    prepare.run("dots")
    return project


WAITING = """\
import signal
import time
from pipeline.training import trainer

plain = trainer.draw_batch

def waiting(examples, settings, path, empty, step, places):
    # Until the signal has come; else a fast training might be over before it.
    while step == {step} and not signal.getsignal(signal.SIGINT).__self__.flag:
        time.sleep(0.01)
    return plain(examples, settings, path, empty, step, places)

trainer.draw_batch = waiting
from pipeline.cli import app; app()
"""


def start(folder: Path, hold_at: int, *arguments: str) -> subprocess.Popen[str]:
    """A `morphline` in a process of its own that waits in the midst of a training, before step `hold_at`."""
    return subprocess.Popen(
        [sys.executable, "-c", WAITING.format(step=hold_at), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # Shells start background jobs deaf to Ctrl-C, and so would be every process below them.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Until a checkpoint below `folder` has that many steps."""
    deadline = time.monotonic() + 120
    while not any(
        int(header(path)["__metadata__"]["step"]) >= step for path in folder.glob("*/checkpoint.safetensors")
    ):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"not at step {step} in two minutes"
        time.sleep(0.005)


def test_a_training_that_is_stopped_and_then_killed_ends_as_if_undisturbed(
    long_project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = long_project / ".work/adapters"

    stopped = start(long_project, 3, "train", "dots")
    wait_for_step(stopped, work, 2)
    stopped.send_signal(signal.SIGINT)  # Ctrl-C
    said = stopped.communicate(timeout=60)[0]
    assert stopped.returncode == 130
    # The step in which the signal came was finished and saved: the held one, or that before it.
    told = re.search(rf"morphline train: stopped after step (\d+) of {STEPS}; the same command goes on", said)
    assert "Traceback" not in said and told and int(told[1]) in (3, 4)
    assert [header(path)["__metadata__"]["step"] for path in work.glob("*/checkpoint.safetensors")] == [told[1]]
    assert not (long_project / "models").exists() and not (long_project / "reports").exists()
    assert not list(long_project.rglob("*.partial*"))

    killed = start(long_project, 15, "train", "dots")
    wait_for_step(killed, work, 14)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (long_project / "models").exists() and not (long_project / "reports").exists()

    capfd.readouterr()
    train.run("dots")
    went_on_at = re.search(rf"set: .*?(\d+)/{STEPS} ", capfd.readouterr().err)
    assert went_on_at and 14 <= int(went_on_at[1]) < STEPS
    assert not list(work.rglob("checkpoint*"))

    calm = tmp_path / "calm"
    shutil.copytree(long_project, calm, ignore=shutil.ignore_patterns("models", "reports", ".work"))
    monkeypatch.chdir(calm)
    train.run("dots")
    for outputs in ("models/adapters", "reports/curves"):
        assert contents(calm / outputs) == contents(long_project / outputs)


class Lost(BaseException):
    """Stands for a SIGKILL of all processes."""


class FirstOfTwo:
    """Accelerate's view of the first of two processes, which are killed while it waits for the other for the
    `lost_at`-th time."""

    num_processes, process_index, is_main_process, device = 2, 0, True, torch.device("cpu")

    def __init__(self, lost_at: int) -> None:
        self.waits, self.lost_at = 0, lost_at

    def wait_for_everyone(self) -> None:
        self.waits += 1
        if self.waits == self.lost_at:
            raise Lost

    @contextmanager
    def split_between_processes(self, items: list[object]) -> Iterator[list[object]]:
        yield items[: (len(items) + 1) // 2]


def test_no_adapter_is_kept_before_all_processes_have_trained_theirs(project: Path) -> None:
    # Else the next start would share out, and so pack, what is left in another way, with other rounding.
    prepare.run("hills")
    with pytest.raises(Lost):
        train.train_set("hills", load_params(), FirstOfTwo(lost_at=3))  # the first wait: the other encodes
    assert not list(Path(".work/adapters").glob("*/adapter.safetensors"))
    assert len(list(Path(".work/adapters").glob("*/checkpoint.safetensors"))) == 2  # its share of three
    with pytest.raises(Lost):
        train.train_set("hills", load_params(), FirstOfTwo(lost_at=4))
    assert len(list(Path(".work/adapters").glob("*/adapter.safetensors"))) == 2


def test_a_second_training_of_the_same_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first one runs, in the midst of its steps."""
    prepare.run("dots")
    plain, refusals = train.train_adapters, []

    def train_twice(*arguments: Any, **keywords: Any) -> Any:
        with pytest.raises(UserError, match=f"process {os.getpid()} is training this already") as refusal:
            train.run("dots")
        refusals.append(refusal)
        return plain(*arguments, **keywords)

    monkeypatch.setattr(train, "train_adapters", train_twice)
    train.run("dots")
    assert len(refusals) == 1 and (project / "models/adapters/dots/set.safetensors").is_file()


def test_a_failed_training_leaves_the_adapters_of_before(ran: Path, project: Path) -> None:
    prepare.run("dots")
    shutil.copytree(ran / "models/adapters/dots", project / "models/adapters/dots")
    before = contents(project / "models/adapters")
    edit(project / "params.yaml", lambda text: with_values(text, {"train.seed": 1}))
    (project / "data/prepared/dots/d1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"data/prepared/dots: damaged .*d1\.png.*dvc repro prepare@dots"):
        train.run("dots")
    assert contents(project / "models/adapters") == before
    assert not list(project.rglob("*.partial*"))
