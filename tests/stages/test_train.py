"""Adapters: what their files hold, and that nothing but their inputs decides it."""

import csv
import json
import os
import re
import shutil
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from pipeline.stages import prepare, train
from pipeline.tracking import Tracker
from pipeline.training.checkpoints import TrainState
from pipeline.training.loop import Job, TrainingSetup
from tests.project import DOTS, HEIGHT, HILLS, WIDTH, contents, edit, paint, paint_set, with_entries, with_values
from tests.training.jobs import jobs


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
        assert not re.search(r"\b20\d\d-\d\d|(?<!\d)\d\d:\d\d|\btime|\bdate", text)
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
        fixed = [f"fixed-noise loss {name}" for name in names]
        assert list(rows[0]) == ["step", "learning_rate", "loss", "grad_norm", *own, *fixed]
        assert [int(row["step"]) for row in rows] == list(range(steps + 1))
        assert all(rows[0][name] and rows[-1][name] for name in fixed), "taken before the first step and after the last"
        assert not any(row[name] for row in rows[1:-1] for name in fixed)
        assert not any(rows[-1][name] for name in ("learning_rate", "loss", "grad_norm", *own))
        for row in rows[:-1]:
            assert float(row["learning_rate"]) == 0.05 and float(row["grad_norm"]) > 0
            assert float(row["loss"]) == pytest.approx(sum(float(row[name]) for name in own) / len(own), rel=1e-4)
            assert len({row[name] for name in own}) == len(own)


def test_nothing_half_written_or_unfinished_is_left(ran: Path) -> None:
    assert not [path for path in ran.rglob("*") if ".partial" in path.name or ".old" in path.name]
    assert not list((ran / ".work/adapters").rglob("checkpoint*"))


def only(folder: Path, name: str, values: dict[str, object]) -> None:
    """A project with the one set `alone` of one picture, trained with these values."""
    paint_set(folder / "data/raw/alone", {name: HILLS[name]})
    entry = "  alone: {adapter: image, prepare: {}, train: {}, sample: {}}\n"
    for section, entries in (("sets", entry), ("morphs", ""), ("edits", "")):
        edit(folder / "params.yaml", partial(with_entries, section=section, entries=entries))
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

    def spy(setup: TrainingSetup, jobs: list[Job]) -> dict[str, TrainState]:
        trained.append([job.name for job in jobs])
        return plain(setup, jobs)

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
    assert "3 of 4 adapters are reused" in "".join(capfd.readouterr())


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
    assert shown == [("training", step, (WIDTH, 3 * HEIGHT)) for step in (2, 4, 6)] + [
        ("training", step, (4 * WIDTH, HEIGHT)) for step in (2, 4)
    ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FloatingPointError("the latents are not finite"), "the latents are not finite"),
        (torch.OutOfMemoryError("CUDA out of memory"), "it does not fit into memory beside the training"),
        (RuntimeError("MPS backend out of memory (20 GB)"), "it does not fit into memory beside the training"),
    ],
)
def test_a_picture_that_cannot_be_made_costs_no_training(
    ran: Path, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Any, said: str
) -> None:
    def fail(*given: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(train, "preview_sheet", fail)
    edit(project / "params.yaml", lambda text: with_values(text, {"tracking.pictures_every": 2}))
    prepare.run("dots")
    train.run("dots")
    assert contents(project / "models/adapters/dots") == contents(ran / "models/adapters/dots")
    assert f"no picture of step 2: {said}" in "".join(capfd.readouterr())


def test_a_reused_adapter_that_was_damaged_is_trained_again(project: Path) -> None:
    prepare.run("dots")
    train.run("dots")
    before = contents(project / "models/adapters/dots")
    (kept,) = (project / ".work/adapters").glob("*/adapter.safetensors")
    kept.write_bytes(kept.read_bytes()[:50])
    train.run("dots")
    assert contents(project / "models/adapters/dots") == before


def test_pictures_held_out_are_measured_and_not_learned_from(project: Path) -> None:
    params = project / "params.yaml"
    edit(params, lambda text: with_values(text, {"train.validate_every": 1}))
    prepare.run("dots")
    edit(params, lambda text: text.replace("train: {steps: 4}", "train: {steps: 4, hold_out: 1}"))
    train.run("dots")
    adapters = project / "models/adapters/dots"
    index = json.loads((adapters / "adapters.json").read_text(encoding="utf-8"))
    learned = notes(adapters / "set.safetensors")["captions"]
    assert set(index) == set(DOTS) and len(learned) == 3 and set(learned) < set(DOTS)
    with (project / "reports/curves/sets/dots.csv").open(encoding="utf-8", newline="") as file:
        taken = [row["fixed-noise loss set"] for row in csv.DictReader(file)]
    assert len(taken) == 5 and all(taken) and len(set(taken)) > 2
    (held_out,) = set(DOTS) - set(learned)
    # Without it the very same adapter is trained, and the loss is of those learned from.
    (project / "data/raw/dots" / held_out).unlink()
    rows = (project / "data/raw/dots/metadata.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = "".join(row for row in rows if held_out not in row)
    (project / "data/raw/dots/metadata.jsonl").write_text(kept, encoding="utf-8")
    edit(params, lambda text: text.replace(", hold_out: 1}", "}"))
    before = tensors(adapters / "set.safetensors")
    prepare.run("dots")
    train.run("dots")
    after = tensors(adapters / "set.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
    with (project / "reports/curves/sets/dots.csv").open(encoding="utf-8", newline="") as file:
        assert [row["fixed-noise loss set"] for row in csv.DictReader(file)] != taken


def test_a_loss_at_fixed_noise_is_called_validation_only_if_it_is_one(fresh_tiny: Any) -> None:
    (job, *_) = jobs(fresh_tiny())
    assert train.measure(job) == "loss_at_fixed_noise"
    assert train.measure(replace(job, held_out=job.examples)) == "validation"
