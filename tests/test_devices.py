"""The whole pipeline on a pretend accelerator, which takes no tensors of the CPU, as CUDA, and no float64, as MPS."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.base.protocol import Base
from pipeline.film import Film, FilmSettings, Keyframe
from pipeline.morphing.diffmorpher import KeyframeAttention
from pipeline.morphing.engine import Recipe
from pipeline.processes import joining
from pipeline.stages import edit as stage_edit
from pipeline.stages import evaluate, morph, prepare, report, sample, styles, train
from pipeline.training.examples import encode_example
from pipeline.training.loop import REPORTS
from tests.pretend import DEVICE, Pretend
from tests.project import contents, edit, with_values
from tests.tiny import open_tiny
from tests.training.jobs import jobs, trained
from tests.training.settings import SETTINGS


def on_device(monkeypatch: pytest.MonkeyPatch, *stages: ModuleType) -> None:
    joined = joining.join_processes

    def join(device: torch.device) -> object:
        accelerator = joined(torch.device("cpu"))
        accelerator.state.device = device
        return accelerator

    monkeypatch.setattr(joining, "join_processes", join)
    for stage in stages:
        monkeypatch.setattr(stage, "choose_device", lambda name: DEVICE)


def first_row(path: Path) -> list[float]:
    """Losses and norms of the first step of every adapter; what was not measured is left out."""
    with path.open(encoding="utf-8", newline="") as file:
        return [float(cell) for cell in next(iter(csv.DictReader(file))).values() if cell]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def test_devices_do_not_mix_and_mps_has_no_float64() -> None:
    with Pretend() as cuda:
        there = torch.ones(3).to(DEVICE)
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            torch.cat([torch.zeros(1), there])
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert (there + 1).device == DEVICE and (there * torch.tensor(2.0)).sum().item() == 6
        assert there.double().dtype == torch.float64
        assert sum(cuda.waits.values()) == 1
    with Pretend(float64=False), pytest.raises(TypeError, match="no float64"):
        torch.ones(3).to(DEVICE).double()


def test_every_stage_runs_and_gives_what_the_cpu_gives(
    project: Path, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_device(monkeypatch, train, sample, morph, evaluate, stage_edit)
    with Pretend(float64=False):
        for key in ("hills", "dots"):
            prepare.run(key)
            train.run(key)
            first, expected = (first_row(folder / f"reports/curves/sets/{key}.csv") for folder in (project, ran))
            assert first == pytest.approx(expected, rel=1e-3)
        # Rounding grows in a training; from here on the same adapters.
        shutil.rmtree(project / "models/adapters")
        shutil.copytree(ran / "models/adapters", project / "models/adapters")
        for stage in (sample, morph, evaluate):
            for key in ("hills", "dots"):
                stage.run(key)
        styles.run()
        stage_edit.run("hills")
        report.run()
    made = [
        *(ran / "data/morphs").glob("*/*/*.png"),
        *(ran / "data/edits").glob("*/*/*.png"),
        *(ran / "reports/samples").glob("*.png"),
    ]
    assert len(made) > 30
    for path in made:
        assert np.abs(pixels(path) - pixels(project / path.relative_to(ran))).max() <= 2, path
    for figures in ("reports/metrics/hills.json", "reports/metrics/dots.json"):
        found, expected = (json.loads((folder / figures).read_text(encoding="utf-8")) for folder in (project, ran))
        for variant, of_variant in expected.items():
            assert found[variant] == pytest.approx(of_variant, rel=0.05, abs=0.01, nan_ok=True), variant


def test_text_encoders_learn_and_read_there_too(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures on the way included, for which only the autoencoder comes and goes."""
    values = {"train.text_rate": 0.02, "tracking.pictures_every": 2, "machine.reuse": "false"}
    edit(project / "params.yaml", lambda text: with_values(text, values))
    curve, sheet, frame = (
        project / name
        for name in ("reports/curves/sets/dots.csv", "reports/samples/dots.png", "data/morphs/dots/frames/0001.png")
    )
    prepare.run("dots")
    for stage in (train, sample, morph):
        stage.run("dots")
    before, shown = first_row(curve), [pixels(sheet), pixels(frame)]
    kept = contents(project / "models/adapters/dots")
    on_device(monkeypatch, train, sample, morph)
    with Pretend(float64=False):
        train.run("dots")
        assert first_row(curve) == pytest.approx(before, rel=1e-3)
        for name, content in kept.items():  # rounding grows in a training; from here on the same adapter
            (project / "models/adapters/dots" / name).write_bytes(content)
        sample.run("dots")
        morph.run("dots")
    for path, expected in zip((sheet, frame), shown, strict=True):
        assert np.abs(pixels(path) - expected).max() <= 2, path


ATTENTION = KeyframeAttention(("down", "mid", "up"), 0.6, "keys-values")


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        (Recipe(solver="ddim"), {"pacing": "linear"}),
        (Recipe(use_adain=True, attention=ATTENTION), {"loop": True}),
        (Recipe(attention=replace(ATTENTION, source="inputs"), guidance=2.0, rescale=0.5), {"pacing": (0.0, 0.3, 1.0)}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_films_with_every_option_run(
    recipe: Recipe, settings: dict[str, object], dtype: str, tiny_folders: dict[str, Path]
) -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(3, 3, 16, 24, generator=generator)
    captions = ["a red hill", "a blue lake", "a hill"]

    def frames(base: Base) -> torch.Tensor:
        short = replace(recipe, steps=3, inversion_steps=3, negative="a lake")
        given = [Keyframe(picture, caption) for picture, caption in zip(pictures, captions, strict=True)]
        made = Film(base, given, FilmSettings(short, frames=4, pacing_spare=2, **settings), batch=6)
        return torch.stack([frame.picture for frame in made])

    with Pretend(float64=False):
        there = frames(open_tiny(tiny_folders["v_prediction"], dtype, DEVICE))
    assert there.device.type == "cpu" and there.isfinite().all()
    if dtype == "float32":
        assert torch.allclose(there, frames(open_tiny(tiny_folders["v_prediction"])), atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"accumulation": 2, "schedule": "cosine", "min_snr_gamma": 5.0, "flip": True}])
def test_training_waits_for_the_device_at_its_periodic_looks_only(
    options: dict[str, object], tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    def waits(steps: int) -> int:
        with Pretend(float64=False) as mode:
            base = open_tiny(tiny_folders["v_prediction"], device=DEVICE)
            prepared = jobs(base)
            mode.waits.clear()
            settings = SETTINGS.model_copy(update={"steps": steps, **options})
            trained(base, tmp_path / f"{steps}", settings, every=1000, wanted=prepared)
            return sum(mode.waits.values())

    assert waits(2 * REPORTS) == waits(3 * REPORTS) > 0  # as many looks, at every second and every third step


def test_encoded_examples_take_nothing_of_the_device(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Thousands of pictures and their captions would fill it."""
    pixels = torch.zeros(3, 16, 16, dtype=torch.uint8)
    with Pretend(float64=False):
        example = encode_example(
            open_tiny(tiny_folders["v_prediction"], device=DEVICE), "a", pixels, "b", True, tmp_path
        )
    held = [*example.conditioning.tensors.values(), example.posterior.mean, example.posterior.std]
    assert {tensor.device.type for tensor in held} == {"cpu"}
