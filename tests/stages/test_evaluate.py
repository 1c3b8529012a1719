"""The figures of a morph, against the same worked out from its files by hand."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.conditioning import Conditioning
from pipeline.distances.perceptual import perceptual
from pipeline.errors import UserError
from pipeline.evaluation.lpips import Lpips
from pipeline.evaluation.naturalness import SHARES
from pipeline.stages import check, evaluate, morph
from tests.evaluation.test_lpips import random_weights, write
from tests.project import HILLS, edit, with_values
from tests.tiny import open_tiny

VARIANTS = {"morph": "frames", "without_adapters": "no-lora", "cross_fade": "cross-fade"}


def metrics(ran: Path, key: str) -> dict[str, Any]:
    return json.loads((ran / f"reports/metrics/{key}.json").read_text(encoding="utf-8"))


def curves(ran: Path, key: str) -> list[dict[str, str]]:
    with (ran / f"reports/curves/morphs/{key}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def picture(path: Path) -> NDArray[np.float64]:
    with Image.open(path) as image:
        return np.asarray(image, dtype=np.float64) / 255


def psnr(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return -10 * math.log10(float(((first - second) ** 2).mean()))


def test_endpoints_are_measured_against_the_prepared_keyframes_and_the_floor(ran: Path) -> None:
    keyframes = [picture(ran / f"data/prepared/hills/{name}.png") for name in ("red hill", "großer See", "blue")]
    folder = ran / "data/morphs/hills"
    floor = [psnr(picture(folder / f"floor/{n:04}.png"), keyframe) for n, keyframe in enumerate(keyframes)]
    for variant in ("morph", "without_adapters"):
        ends = [picture(folder / VARIANTS[variant] / f"{n:04}.png") for n in (0, 2, 4)]
        reached = [psnr(end, keyframe) for end, keyframe in zip(ends, keyframes, strict=True)]
        found = metrics(ran, "hills")[variant]
        assert found["endpoints_psnr"] == pytest.approx(np.mean(reached), abs=1e-4)
        assert found["endpoints_floor_psnr"] == pytest.approx(np.mean(floor), abs=1e-4)
        gaps = [f - r for f, r in zip(floor, reached, strict=True)]
        assert found["endpoints_worst_psnr_gap"] == pytest.approx(max(gaps), abs=1e-4)


def test_a_cross_fade_has_no_endpoints_of_its_own(ran: Path) -> None:
    assert not [name for name in metrics(ran, "hills")["cross_fade"] if name.startswith("endpoints")]


@pytest.mark.parametrize(("key", "frames"), [("hills", 5), ("dots", 4)])
def test_smoothness_is_that_of_the_curves(ran: Path, key: str, frames: int) -> None:
    rows = curves(ran, key)
    positions = np.linspace(0, 2 if key == "hills" else 1, frames)
    middles = (positions[1:] + positions[:-1]) / 2
    assert [float(row["position"]) for row in rows] == pytest.approx(middles.tolist(), abs=1e-5)
    for variant in VARIANTS:
        steps = np.array([float(row[variant]) for row in rows])
        found = metrics(ran, key)[variant]
        assert (steps > 0).all()
        assert found["neighbours_sum"] == pytest.approx(steps.sum(), rel=1e-4)
        assert found["neighbours_variance"] == pytest.approx(steps.var(), rel=1e-2, abs=2e-6)
        assert found["neighbours_max_over_mean"] == pytest.approx(steps.max() / steps.mean(), rel=1e-4)


@pytest.mark.parametrize("key", ["hills", "dots"])
def test_ppl_and_pdv_take_each_pair_of_keyframes_for_itself(ran: Path, key: str) -> None:
    rows = curves(ran, key)
    for variant in VARIANTS:
        steps = np.array([float(row[variant]) for row in rows])
        segments = np.split(steps, 2) if key == "hills" else [steps]
        found = metrics(ran, key)[variant]
        assert found["ppl"] == pytest.approx(np.mean([row.sum() for row in segments]), rel=1e-4)
        assert found["pdv"] == pytest.approx(np.mean([((row - row.mean()) ** 2).mean() for row in segments]), abs=2e-6)


def test_naturalness_is_the_denoising_error_of_frames_between_over_that_of_the_keyframes(ran: Path) -> None:
    base = open_tiny(ran / "bases/tiny")
    captions = base.condition(list(HILLS.values()))
    halfway = torch.tensor([0.5])

    def error(path: Path, caption: Conditioning) -> float:
        latent = base.encode(torch.from_numpy(picture(path)).permute(2, 0, 1).float()[None]).mean
        total = 0.0
        for number, share in enumerate(SHARES):
            noise = torch.randn(latent.shape[1:], generator=torch.Generator().manual_seed(number))[None]
            at = torch.tensor([int(share * 1000)])
            with torch.no_grad():
                found = base.predict(base.path.add_noise(latent, noise, at), at, caption)
            total += float((found - base.path.target(latent, noise, at)).square().mean())
        return total

    names = ("red hill", "großer See", "blue")
    of_keyframes = [error(ran / f"data/prepared/hills/{name}.png", captions.take([n])) for n, name in enumerate(names)]
    for variant, folder in VARIANTS.items():
        # Three frames per segment: those between are 1 and 3, halfway.
        of_frames = [
            error(
                ran / f"data/morphs/hills/{folder}/000{frame}.png",
                Conditioning.lerp(captions.take([n]), captions.take([n + 1]), halfway),
            )
            for n, frame in enumerate((1, 3))
        ]
        found = metrics(ran, "hills")[variant]["naturalness"]
        assert found == pytest.approx(np.mean(of_frames) / np.mean(of_keyframes), rel=1e-3)


def copy_of(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project with all outputs, to change."""
    project = tmp_path / "project"
    shutil.copytree(ran, project)
    monkeypatch.chdir(project)
    return project


def test_lpips_stands_beside_the_embedded_distance_where_its_weights_are_named(
    ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = copy_of(ran, tmp_path, monkeypatch)
    digest = write(project / "alex.safetensors", random_weights())
    edit(project / "params.yaml", lambda text: with_values(text, {"evaluate.lpips": "alex.safetensors"}))
    for stage in (check.run, lambda: evaluate.run("hills")):
        with pytest.raises(UserError, match="lpips_digest"):
            stage()
    edit(project / "params.yaml", lambda text: with_values(text, {"evaluate.lpips_digest": digest}))
    check.run()
    evaluate.run("hills")
    network = Lpips.read(project / "alex.safetensors", torch.device("cpu"))
    for variant, folder in VARIANTS.items():
        frames = [picture(project / f"data/morphs/hills/{folder}/{n:04}.png") for n in range(5)]
        stacked = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()
        steps = np.array(network.neighbour_distances(stacked))
        found = metrics(project, "hills")[variant]
        assert found.pop("lpips_ppl") == pytest.approx(steps.sum() / 2, rel=1e-3)
        assert found.pop("lpips_pdv") == pytest.approx((steps[:2].var() + steps[2:].var()) / 2, abs=2e-6)
        assert found == metrics(ran, "hills")[variant], "the other figures stay the same"


def test_the_last_step_of_a_loop_leads_back_to_its_first_frame(
    ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = copy_of(ran, tmp_path, monkeypatch)
    edit(project / "params.yaml", lambda text: with_values(text, {"morph.loop": "true"}))
    morph.run("dots")
    evaluate.run("dots")
    frames = [
        torch.from_numpy(picture(project / f"data/morphs/dots/frames/{n:04}.png")).permute(2, 0, 1).float()[None]
        for n in range(6)
    ]
    rows = curves(project, "dots")
    assert [float(row["position"]) for row in rows] == pytest.approx([(n + 0.5) / 3 for n in range(6)], abs=1e-5)
    assert float(rows[5]["morph"]) == pytest.approx(perceptual(frames[5], frames[0]).item(), rel=1e-4)
    # There and back: the straight line is twice that between the two keyframes.
    found = metrics(project, "dots")["morph"]
    there = perceptual(frames[0], frames[3]).item()
    assert found["directness"] == pytest.approx(found["neighbours_sum"] / (2 * there), rel=1e-4)
    assert found["ppl"] == pytest.approx(found["neighbours_sum"] / 2, rel=1e-4)


def test_the_plot_is_a_picture(ran: Path) -> None:
    with Image.open(ran / "reports/smoothness/hills.png") as plot:
        plot.load()
        assert min(plot.size) > 200
