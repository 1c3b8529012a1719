"""Ghosting: high for what the eye calls a double exposure, low for everything else."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.optimize import nnls

from pipeline.evaluation.ghosting import ghosting
from tests.distances.samples import stack, wide

NAMES = ("chelsea", "coffee", "rocket")


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return stack(wide(name)[:96] for name in NAMES)


def of(*frames: torch.Tensor) -> float:
    return ghosting([(frames[0], frames[-1], frames[1:-1])])


def test_it_is_what_a_fit_with_two_pictures_explains_beyond_one(pictures: torch.Tensor) -> None:
    """By scipy's filter and solver, for frames of any kind."""
    first, last, other = pictures
    grain = torch.randn(first.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    between = [
        0.7 * first + 0.3 * last, 0.4 * first + 0.6 * last + grain, 0.5 * first + 0.5 * other, other, 1 - first,
        1.2 * first - 0.4 * last, first.roll(5, dims=2),
    ]  # fmt: skip

    def structure(frame: torch.Tensor) -> np.ndarray:
        sharp = frame.double().numpy()
        return (sharp - gaussian_filter(sharp, (0, 1.5, 1.5), mode="mirror", truncate=3)).ravel()

    def explained(frame: np.ndarray, *by: torch.Tensor) -> float:
        _, rest = nnls(np.stack([structure(end) for end in by], axis=1), frame)
        return float(1 - rest**2 / (frame @ frame))

    for frame in between:
        there = structure(frame)
        expected = explained(there, first, last) - max(explained(there, first), explained(there, last))
        assert of(first, frame, last) == pytest.approx(expected, abs=1e-9)


def test_double_exposures_have_it_and_cuts_movements_and_blur_do_not(pictures: torch.Tensor) -> None:
    first, last, other = pictures
    fade = [first * (1 - alpha) + last * alpha for alpha in torch.linspace(0, 1, 9)]
    assert 0.1 < of(*fade) < 0.3
    half = of(first, (first / first.std() + last / last.std()) / 2, last)
    assert 0.3 < half <= 0.5
    assert of(first, first, first, last, last) == pytest.approx(0, abs=1e-9), "a cut"
    assert of(first, other, last) < 0.02, "a third picture"
    assert of(first, first.roll(20, dims=2), last) < 0.02, "movement"
    blurred = torch.from_numpy(gaussian_filter(first.numpy(), (0, 2, 2)))
    assert of(first, blurred, last) < 0.02
    assert of(first, first * 0.5 + 0.2, last) == pytest.approx(0, abs=1e-9), "light is no structure"


def test_equal_ends_and_flat_frames_have_none(pictures: torch.Tensor) -> None:
    flat = torch.full_like(pictures[0], 0.5)
    assert of(pictures[0], pictures[0] * 0.9, pictures[0]) == 0
    assert of(pictures[0], flat, pictures[1]) == pytest.approx(0, abs=1e-9)
    assert of(flat, pictures[0], flat) == 0


def test_it_is_the_mean_over_the_frames_of_all_segments(pictures: torch.Tensor) -> None:
    first, last, other = pictures
    halves = (first + last) / 2, (last + other) / 2
    one, two = of(first, halves[0], last), of(last, halves[1], other)
    both = ghosting([(first, last, [halves[0], first]), (last, other, [halves[1]])])
    assert both == pytest.approx((one + 0 + two) / 3, abs=1e-9)
