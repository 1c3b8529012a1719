"""The figures of a morph, against the same worked out from its files by hand."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

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


def test_the_plot_is_a_picture(ran: Path) -> None:
    with Image.open(ran / "reports/smoothness/hills.png") as plot:
        plot.load()
        assert min(plot.size) > 200
