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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from pipeline.params import load_params
from pipeline.stages import prepare, train
from pipeline.tracking import Tracker
from pipeline.training import encoding
from pipeline.training.processes import Processes
from tests.project import DOTS, HILLS, ROOT, contents, edit, paint, paint_set, with_entries, with_values


def yaml_section(text: str, name: str) -> dict[str, Any]:
    return YAML(typ="safe").load(text)[name]


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

    from tests.peft_adapters import load_adapter

    path = ran / "models/adapters" / f"{file}.safetensors"
    pipe = StableDiffusionPipeline.from_pretrained(ran / "bases/tiny")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([500]), torch.randn(1, 64, 16)
    with torch.no_grad():
        alone = pipe.unet(*inputs).sample
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="ours")
        theirs = pipe.unet(*inputs).sample
        base = fresh_tiny()
        load_adapter(base.denoiser, path, "ours")
        ours = base.denoiser(*inputs).sample
    assert torch.equal(theirs, ours)
    assert float((theirs - alone).abs().max()) > 1e-3, "the adapter does nothing"


def test_the_metadata_says_where_an_adapter_comes_from(ran: Path) -> None:
    said = notes(ran / "models/adapters/hills/großer See.safetensors")
    text = (ran / "params.yaml").read_text(encoding="utf-8")
    revision = re.search(r"revision: (sha256:\w+)", text)[1]
    assert said["base"] == {"source": "bases/tiny", "revision": revision, "digest": revision}
    assert said["captions"] == {"großer See.png": HILLS["großer See.jpg"]}
    assert (said["rank"], said["alpha"]) == (2, 8.0)
    assert said["steps"] == 6
    assert said["train"] == yaml_section(text, "train") | {"steps": 6, "batch": 2, "learning_rate": 0.05, "rank": 2}
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
        fixed = [f"validation loss {name}" for name in names]
        assert list(rows[0]) == ["step", "learning_rate", "loss", "grad_norm", *own, *fixed]
        assert [int(row["step"]) for row in rows] == list(range(steps))
        for row in rows:
            assert float(row["learning_rate"]) == 0.05 and float(row["grad_norm"]) > 0
            assert float(row["loss"]) == pytest.approx(sum(float(row[name]) for name in own) / len(own), rel=1e-4)
            assert len({row[name] for name in own}) == len(own)
            at_an_end = row in (rows[0], rows[-1])
            assert all((row[name] != "") == at_an_end for name in fixed), "validated at the start and the end"


def test_nothing_half_written_or_unfinished_is_left(ran: Path) -> None:
    assert not [path for path in ran.rglob("*") if ".partial" in path.name or ".old" in path.name]
    assert not list((ran / ".work/adapters").rglob("checkpoint*"))


def only(folder: Path, name: str, values: dict[str, object]) -> None:
    """A project with the one set `alone` of one picture, trained with these values."""
    paint_set(folder / "data/raw/alone", {name: HILLS[name]})
    entry = "  alone: {adapter: image, prepare: {}, train: {}, sample: {}}\n"
    edit(folder / "params.yaml", lambda text: with_entries(with_entries(text, "sets", entry), "morphs", ""))
    edit(folder / "params.yaml", lambda text: text.replace("\nmorphs:\n", "\nmorphs: {}\n"))
    edit(folder / "params.yaml", lambda text: with_values(text, values))


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def test_an_adapter_is_the_same_trained_alone_as_among_others(ran: Path, project: Path) -> None:
    """Promise 1, to float32's rounding: other pictures, another order and other names of the set change nothing."""
    name, file = "großer See.jpg", "großer See.safetensors"
    only(project, name, {"machine.checkpoint_every": 1})
    shutil.copy(ran / "data/raw/hills" / name, project / "data/raw/alone" / name)
    torch.manual_seed(12345)
    prepare.run("alone")
    train.run("alone")
    alone, among = (
        tensors(folder / file) for folder in (project / "models/adapters/alone", ran / "models/adapters/hills")
    )
    assert alone.keys() == among.keys()
    close = torch.cat([torch.isclose(alone[key], among[key], atol=1e-4).flatten() for key in alone])
    assert float(close.double().mean()) > 0.98
    assert (
        notes(project / "models/adapters/alone" / file)["inputs"]
        == notes(ran / "models/adapters/hills" / file)["inputs"]
    )


def test_a_known_adapter_is_reused_and_only_the_new_one_is_trained(
    ran: Path, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    prepare.run("hills")
    train.run("hills")
    before = contents(project / "models/adapters/hills")
    curves = (project / "reports/curves/sets/hills.csv").read_bytes()
    plain, trained = train.train_adapters, []

    def spy(base: Any, jobs: list[Any], *rest: Any, **keywords: Any) -> Any:
        trained.append([job.name for job in jobs])
        return plain(base, jobs, *rest, **keywords)

    monkeypatch.setattr(train, "train_adapters", spy)
    train.run("hills")
    edit(project / "params.yaml", lambda text: with_values(text, {"machine.reuse": "false"}))
    train.run("hills")
    edit(project / "params.yaml", lambda text: with_values(text, {"machine.reuse": "true"}))
    assert contents(project / "models/adapters/hills") == before, "other bytes"
    assert (project / "reports/curves/sets/hills.csv").read_bytes() == curves
    paint(project / "data/raw/hills/new.png", 99)
    with (project / "data/raw/hills/metadata.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"file_name": "new.png", "text": "a red lake"}\n')
    prepare.run("hills")
    train.run("hills")
    assert trained == [[], NAMES, ["new"]]
    now = contents(project / "models/adapters/hills")
    assert {name: now[name] for name in before if name != "adapters.json"} == {
        name: content for name, content in before.items() if name != "adapters.json"
    }
    assert "new.safetensors" in now
    assert "3 of 4 adapters are known" in "".join(capfd.readouterr())


def test_pictures_from_a_training_under_way_come_with_their_step_and_change_nothing(
    ran: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, int | None, tuple[int, int]]] = []
    monkeypatch.setattr(
        Tracker, "picture", lambda self, key, picture, step=None: shown.append((key, step, picture.size))
    )
    edit(project / "params.yaml", lambda text: with_values(text, {"tracking.pictures_every": 2}))
    for key in ("hills", "dots"):
        prepare.run(key)
        train.run(key)
        assert contents(project / "models/adapters" / key) == contents(ran / "models/adapters" / key)
    # Three adapters below each other, one caption each; then four captions of one adapter beside each other.
    assert shown == [("training", step, (64, 3 * 72)) for step in (2, 4, 6)] + [
        ("training", step, (4 * 64, 72)) for step in (2, 4)
    ]


def test_encoded_pictures_are_kept_until_the_picture_the_caption_or_the_code_is_another(
    tmp_path: Path, fresh_tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = fresh_tiny()
    pixels = torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    one = encoding.encode_example(base, "a", pixels, "a red hill", True, tmp_path)
    plain, encoded = encoding._encode, []

    def spy(*arguments: Any) -> Any:
        encoded.append(arguments[2])
        return plain(*arguments)

    monkeypatch.setattr(encoding, "_encode", spy)
    again = encoding.encode_example(base, "a", pixels, "a red hill", True, tmp_path)
    assert encoded == [] and torch.equal(one.posterior.mean, again.posterior.mean)
    assert one.flipped and again.flipped and torch.equal(one.flipped.std, again.flipped.std)
    assert torch.equal(one.posterior.mean, base.encode(pixels[None].float() / 255).mean)
    assert torch.equal(one.flipped.mean, base.encode(pixels.flip(-1)[None].float() / 255).mean)
    encoding.encode_example(base, "a", pixels, "a lake", True, tmp_path)
    encoding.encode_example(base, "a", pixels.flip(0), "a hill", True, tmp_path)
    monkeypatch.setattr(encoding, "stamp", lambda: "other code")
    encoding.encode_example(base, "a", pixels, "a red hill", True, tmp_path)
    assert encoded == ["a lake", "a hill", "a red hill"]
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    encoding.encode_example(base, "a", pixels, "a red hill", True, tmp_path)
    assert len(encoded) == 4


def test_a_reused_adapter_that_was_damaged_is_trained_again(project: Path) -> None:
    prepare.run("dots")
    train.run("dots")
    before = contents(project / "models/adapters/dots")
    (kept,) = (project / ".work/adapters").glob("*/adapter.safetensors")
    kept.write_bytes(kept.read_bytes()[:50])
    train.run("dots")
    assert contents(project / "models/adapters/dots") == before


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
import signal
import time
from pipeline.training import loop as training

plain = training.draw_batch

def held(samples, settings, length, empty, step, places):
    # Until the signal has come; else a fast training might be over before it.
    while step == {step} and not signal.getsignal(signal.SIGINT).__self__.flag:
        time.sleep(0.01)
    return plain(samples, settings, length, empty, step, places)

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
    told = re.search(rf"morphline train: stopped after step (\d+) of {STEPS}; `dvc repro` goes on", said)
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


@dataclass(frozen=True)
class FirstOfTwo(Processes):
    """The first of two processes, which are killed while it waits for the other for the `lost_at`-th time."""

    waits: list[int] = field(default_factory=list)
    lost_at: int = 2

    def wait(self) -> None:
        self.waits.append(1)
        if len(self.waits) == self.lost_at:
            raise Lost


def test_no_adapter_is_kept_before_all_processes_have_trained_theirs(project: Path) -> None:
    # Else the next start would share out, and so pack, what is left in another way, with other rounding.
    prepare.run("hills")
    with pytest.raises(Lost):
        train.train_set("hills", load_params(), FirstOfTwo(0, 2), torch.device("cpu"))
    assert not list(Path(".work/adapters").glob("*/adapter.safetensors"))
    assert len(list(Path(".work/adapters").glob("*/checkpoint.safetensors"))) == 2  # its share of three
    with pytest.raises(Lost):
        train.train_set("hills", load_params(), FirstOfTwo(0, 2, lost_at=3), torch.device("cpu"))
    assert len(list(Path(".work/adapters").glob("*/adapter.safetensors"))) == 2


def test_a_second_training_of_the_same_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first one runs, in the midst of its steps."""
    from pipeline.errors import UserError

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
    with pytest.raises(OSError, match="d1.png"):
        train.run("dots")
    assert contents(project / "models/adapters") == before
    assert not list(project.rglob("*.partial*"))
