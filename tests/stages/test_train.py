"""Adapters: what their files hold, and that nothing but their inputs decides it."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.stages import prepare, train
from tests.project import DOTS, HILLS, ROOT, contents, edit, paint_set, with_entries, with_values

NAMES = ["red hill", "großer See", "blue"]


def header(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def notes(path: Path) -> dict[str, Any]:
    return json.loads(header(path)["__metadata__"]["morphline"])


def test_a_set_of_images_gives_one_adapter_for_each(ran: Path) -> None:
    folder = ran / "models/adapters/hills"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(f"{name}.safetensors" for name in NAMES), "adapters.json"]
    )
    index = json.loads((folder / "adapters.json").read_text(encoding="utf-8"))
    assert index == {f"{name}.png": f"{name}.safetensors" for name in NAMES}


def test_a_set_as_one_gives_one_adapter_for_all(ran: Path) -> None:
    folder = ran / "models/adapters/dots"
    assert sorted(path.name for path in folder.iterdir()) == ["adapters.json", "set.safetensors"]
    index = json.loads((folder / "adapters.json").read_text(encoding="utf-8"))
    assert index == dict.fromkeys(DOTS, "set.safetensors")
    assert notes(folder / "set.safetensors")["captions"] == DOTS


@pytest.mark.parametrize("file", [*(f"hills/{name}" for name in NAMES), "dots/set"])
def test_diffusers_takes_an_adapter_as_it_is(ran: Path, fresh_tiny: Any, file: str) -> None:
    from diffusers import StableDiffusionPipeline

    from pipeline.adapters.lora import load_adapter

    path = ran / "models/adapters" / f"{file}.safetensors"
    pipe = StableDiffusionPipeline.from_pretrained(ran / "bases/tiny")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([500]), torch.randn(1, 64, 16)
    with torch.no_grad():
        alone = pipe.unet(*inputs).sample
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="ours")
        theirs = pipe.unet(*inputs).sample
        base = fresh_tiny()
        load_adapter(base.unet, path, "ours", base.digest)
        ours = base.unet(*inputs).sample
    assert torch.equal(theirs, ours)
    assert float((theirs - alone).abs().max()) > 1e-3, "the adapter does nothing"


def test_the_metadata_says_where_an_adapter_comes_from(ran: Path) -> None:
    said = notes(ran / "models/adapters/hills/großer See.safetensors")
    text = (ran / "params.yaml").read_text(encoding="utf-8")
    revision = re.search(r"revision: (sha256:\w+)", text)[1]
    assert said["base"] == {"source": "bases/tiny", "revision": revision, "digest": revision}
    assert said["captions"] == {"großer See.png": HILLS["großer See.jpg"]}
    assert (said["rank"], said["alpha"]) == (2, 8.0)
    assert said["train"] == {
        "steps": 6, "batch": 2, "learning_rate": 0.05, "weight_decay": 0.01, "max_grad_norm": 1.0,
        "noise_offset": 0.0, "rank": 2, "alpha": 8.0, "seed": 0,
    }  # fmt: skip
    digests = [notes(ran / f"models/adapters/hills/{name}.safetensors")["inputs"][f"{name}.png"] for name in NAMES]
    assert len(set(digests)) == 3 and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    assert notes(ran / "models/adapters/dots/set.safetensors")["train"]["steps"] == 4


def test_nothing_volatile_is_in_an_adapter(ran: Path) -> None:
    """No dates, clock times, host, user's folders or run ids: they would make equal adapters differ."""
    for path in (ran / "models/adapters").rglob("*.safetensors"):
        text = json.dumps(header(path), ensure_ascii=False)
        assert not re.search(r"\b20\d\d-\d\d|\d\d:\d\d|\btime|\bdate", text)
        for place in (str(ran), str(Path.home()), "/tmp", socket.gethostname(), str(os.getpid())):
            assert place not in text or len(place) < 3


def test_adapters_are_float32_and_of_the_rank_asked_for(ran: Path) -> None:
    for path in (ran / "models/adapters").rglob("*.safetensors"):
        tensors = {key: value for key, value in header(path).items() if key != "__metadata__"}
        assert tensors and {value["dtype"] for value in tensors.values()} == {"F32"}
        assert {min(value["shape"]) for value in tensors.values()} == {2}


def test_the_curves_have_a_line_for_each_step_and_a_column_for_each_adapter(ran: Path) -> None:
    for key, names, steps in (("hills", NAMES, 6), ("dots", ["set"], 4)):
        with (ran / f"reports/curves/sets/{key}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        own = [f"loss {name}" for name in names]
        assert list(rows[0]) == ["step", "learning_rate", "loss", "grad_norm", *own]
        assert [int(row["step"]) for row in rows] == list(range(steps))
        for row in rows:
            assert float(row["learning_rate"]) == 0.05 and float(row["grad_norm"]) > 0
            assert float(row["loss"]) == pytest.approx(sum(float(row[name]) for name in own) / len(own), rel=1e-4)
            assert len({row[name] for name in own}) == len(own)


def test_nothing_half_written_or_unfinished_is_left(ran: Path) -> None:
    assert not [path for path in ran.rglob("*") if ".partial" in path.name or ".old" in path.name]
    assert not [path for path in (ran / ".work/train").iterdir() if path.is_dir()]


def test_an_adapter_is_the_same_trained_alone_as_among_others(ran: Path, project: Path) -> None:
    """Promise 1, to the byte: other pictures, another order and other names of the set change nothing."""
    name = "großer See.jpg"
    raw = project / "data/raw/alone"
    paint_set(raw, {name: HILLS[name]})
    shutil.copy(ran / "data/raw/hills" / name, raw / name)
    alone = "  alone: {adapter: image, prepare: {}, train: {}, sample: {}}\n"
    edit(project / "params.yaml", lambda text: with_entries(with_entries(text, "sets", alone), "morphs", ""))
    edit(project / "params.yaml", lambda text: text.replace("\nmorphs:\n", "\nmorphs: {}\n"))
    edit(project / "params.yaml", lambda text: with_values(text, {"machine.checkpoint_every": 1}))
    torch.manual_seed(12345)
    prepare.run("alone")
    train.run("alone")
    file = "großer See.safetensors"
    among = (ran / "models/adapters/hills" / file).read_bytes()
    assert (project / "models/adapters/alone" / file).read_bytes() == among


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


HELD = """\
import time
from pipeline.adapters import training

plain = training.draw_batch

def held(base, samples, settings, step):
    if step == {step}:
        time.sleep(300)  # until the signal comes; else a fast training might be over before it
    return plain(base, samples, settings, step)

training.draw_batch = held
from pipeline.cli import app; app()
"""


def start(folder: Path, hold_at: int, *arguments: str) -> subprocess.Popen[str]:
    """A `morphline` in a process of its own that waits in the midst of a training, before step `hold_at`."""
    return subprocess.Popen(
        [sys.executable, "-c", HELD.format(step=hold_at), *arguments],
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
    while not any(int(header(path)["__metadata__"]["step"]) >= step for path in folder.glob("*/set.checkpoint")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"not at step {step} in two minutes"
        time.sleep(0.005)


def test_a_training_that_is_stopped_and_then_killed_ends_as_if_undisturbed(
    long_project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = long_project / ".work/train"

    stopped = start(long_project, 3, "train", "dots")
    wait_for_step(stopped, work, 2)
    stopped.send_signal(signal.SIGINT)  # Ctrl-C
    said = stopped.communicate(timeout=60)[0]
    assert stopped.returncode == 130
    assert "Traceback" not in said and "morphline train: stopped" in said
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
    assert not [path for path in work.iterdir() if path.is_dir()]

    calm = tmp_path / "calm"
    shutil.copytree(long_project, calm, ignore=shutil.ignore_patterns("models", "reports", ".work"))
    monkeypatch.chdir(calm)
    train.run("dots")
    for outputs in ("models/adapters", "reports/curves"):
        assert contents(calm / outputs) == contents(long_project / outputs)


def test_a_second_training_of_the_same_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first one runs, in the midst of its steps."""
    from pipeline.errors import UserError

    prepare.run("dots")
    plain, refusals = train.train_adapter, []

    def train_twice(*arguments: Any, **keywords: Any) -> Any:
        with pytest.raises(UserError, match=f"process {os.getpid()} is training this already") as refusal:
            train.run("dots")
        refusals.append(refusal)
        return plain(*arguments, **keywords)

    monkeypatch.setattr(train, "train_adapter", train_twice)
    train.run("dots")
    assert len(refusals) == 1 and (project / "models/adapters/dots/set.safetensors").is_file()


def test_a_failed_training_leaves_the_adapters_of_before(ran: Path, project: Path) -> None:
    prepare.run("dots")
    shutil.copytree(ran / "models/adapters/dots", project / "models/adapters/dots")
    before = contents(project / "models/adapters")
    edit(project / "params.yaml", lambda text: with_values(text, {"train.seed": 1}))
    (project / "data/prepared/dots/d1.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match="d1.png"):
        train.run("dots")
    assert contents(project / "models/adapters") == before
    assert not list(project.rglob("*.partial*"))
