import math

import numpy as np
import pytest
import torch

from pipeline.distances import features
from pipeline.distances.features import extract
from pipeline.distances.perceptual import perceptual
from pipeline.evaluation.smoothness import (
    Smoothness,
    directness,
    neighbour_distances,
    pdv,
    ppl,
    segments,
    smoothness,
)
from tests.distances.samples import picture, stack, tensor

FRAMES = 13


def cross_fade(first, second, frames=FRAMES):
    return stack([(1 - share) * first + share * second for share in np.linspace(0, 1, frames)])


def ball(x, y, side=96):
    """A soft dark ball on a light ground with its centre at (x, y) px."""
    rows, columns = np.mgrid[:side, :side]
    inside = 1 / (1 + np.exp(np.hypot(columns - x, rows - y) - 10))
    return 0.8 - inside[..., None] * np.array([0.6, 0.5, 0.2])


def motion(frames=FRAMES):
    return stack([ball(x, 48) for x in np.linspace(20, 76, frames)])


# Smoothness


def test_smoothness_of_known_distances():
    # Mean 2, deviations -1, -1, 2: variance (1 + 1 + 4) / 3 = 2.
    assert smoothness([1, 1, 4]) == Smoothness(sum=6, variance=2, std=math.sqrt(2), max_over_mean=2)


def test_an_even_pace_has_no_variance():
    assert smoothness([0.25] * 8) == Smoothness(sum=2, variance=0, std=0, max_over_mean=1)


def test_one_jump_between_stills_is_the_worst_pace():
    frames = torch.cat([tensor(picture("coffee"))] * 6 + [tensor(picture("rocket"))] * 6)
    jump = smoothness(neighbour_distances(frames))
    assert jump.max_over_mean == pytest.approx(11)
    assert jump.sum == pytest.approx(perceptual(frames[:1], frames[-1:]).item())
    assert (
        jump.variance > 20 * smoothness(neighbour_distances(cross_fade(picture("coffee"), picture("rocket")))).variance
    )


def test_a_jump_inside_a_smooth_path_shows():
    smooth = motion()
    jumpy = smooth[[0, 1, 2, 3, 4, 5, 10, 11, 12]]
    assert smoothness(neighbour_distances(smooth)).max_over_mean < 1.25
    assert smoothness(neighbour_distances(jumpy)).max_over_mean > 2


def test_flicker_lengthens_the_path():
    clean = motion()
    noisy = (clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert smoothness(neighbour_distances(noisy)).sum > 2 * smoothness(neighbour_distances(clean)).sum


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_frames_that_are_all_alike_move_evenly_and_nowhere(frames):
    still = tensor(picture("coffee")).repeat(frames, 1, 1, 1)
    distances = neighbour_distances(still)
    assert distances.tolist() == [0] * (frames - 1)
    assert smoothness(distances) == Smoothness(sum=0, variance=0, std=0, max_over_mean=1)
    assert directness(distances, perceptual(still[:1], still[-1:]).numpy()) == 1


# Paths


def test_directness_of_known_distances():
    assert directness([0.2, 0.3, 0.1], 0.4) == pytest.approx(1.5)
    # Out and back: each segment counts for itself.
    assert directness([1, 1, 1, 1], [2, 2]) == 1
    assert directness([1, 1], 0) is None


def test_a_cross_fade_takes_the_straight_path_and_a_motion_does_not():
    moved = motion()
    faded = cross_fade(ball(20, 48), ball(76, 48))
    ends = perceptual(moved[:1], moved[-1:]).item()
    assert ends == pytest.approx(perceptual(faded[:1], faded[-1:]).item(), rel=1e-4)
    of_motion, of_fade = neighbour_distances(moved), neighbour_distances(faded)
    assert 1 - 1e-6 <= directness(of_fade, ends) < 1.2
    assert directness(of_motion, ends) > 1.5
    # Evenness does not tell them apart: a cross-fade is smooth. It is only no motion.
    assert smoothness(of_fade).max_over_mean < 2


@pytest.mark.parametrize("pair", [("astronaut", "chelsea"), ("rocket", "coffee")])
def test_no_path_is_shorter_than_the_straight_one_however_finely_it_is_cut(pair):
    first, second = (picture(name) for name in pair)
    straight = perceptual(tensor(first), tensor(second)).item()
    fades = [cross_fade(first, second, frames) for frames in (2, 5, 9, 17)]
    lengths = [directness(neighbour_distances(fade), straight) for fade in fades]
    assert lengths[0] == pytest.approx(1, abs=1e-6)
    assert all(np.diff(lengths) > -1e-6)
    # The length settles as the cut gets finer, so morphs of 9 and of 17 frames can be set side by side.
    assert lengths[3] < 1.02 * lengths[2]


def test_neighbour_distances_cost_one_pass_a_frame(monkeypatch):
    passes = []
    plain_lab = features.lab
    monkeypatch.setattr(features, "lab", lambda pictures: passes.append(len(pictures)) or plain_lab(pictures))
    frames = motion(7)
    distances = neighbour_distances(frames)
    assert sum(passes) == 7
    assert distances.dtype == np.float64 and distances.shape == (6,)
    expected = [perceptual(frames[i : i + 1], frames[i + 1 : i + 2]).item() for i in range(6)]
    assert distances.tolist() == expected
    assert neighbour_distances(extract(frames)).tolist() == expected


# What papers report


def test_ppl_and_pdv_of_known_distances():
    rows = segments([1, 1, 4, 2, 2, 2], [0, 3, 6])
    assert [row.tolist() for row in rows] == [[1, 1, 4], [2, 2, 2]]
    # Sums 6 and 6; variances (1 + 1 + 4) / 3 = 2 and 0.
    assert (ppl(rows), pdv(rows)) == (6, 1)
    assert (ppl([[1, 2]]), pdv([[1, 2]])) == (3, 0.25)


def test_a_slow_segment_after_a_fast_one_is_even_to_pdv_and_not_over_the_whole_path():
    steps = [4.0] * 8 + [1.0] * 8
    assert pdv(segments(steps, [0, 8, 16])) == 0
    assert smoothness(steps).variance == 2.25


def test_pdv_shows_a_jump_and_ppl_shows_flicker():
    smooth = motion(9)
    jumpy = smooth[[0, 0, 0, 0, 0, 8, 8, 8, 8]]
    noisy = (smooth + 0.1 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    figures = {
        name: (ppl([distances]), pdv([distances]))
        for name, frames in (("smooth", smooth), ("jumpy", jumpy), ("noisy", noisy))
        for distances in [neighbour_distances(frames)]
    }
    assert figures["jumpy"][1] > 10 * figures["smooth"][1]
    assert figures["jumpy"][0] < figures["smooth"][0] < figures["noisy"][0] / 1.5
    still = neighbour_distances(smooth[[0] * 9])
    assert (ppl([still]), pdv([still])) == (0, 0)


@pytest.mark.parametrize("stops", [[0], [0, 2], [1, 3], [0, 2, 2, 3], [0, 3, 2]])
def test_stops_that_do_not_rise_from_end_to_end_are_refused(stops):
    with pytest.raises(ValueError, match="rise from frame 0 to frame 3"):
        segments([1, 1, 1], stops)


# Broken input


def test_a_broken_frame_is_named():
    frames = motion(5)
    frames[3, 0, 10, 10] = float("nan")
    with pytest.raises(ValueError, match=r"frames\[3\]: holds NaN"):
        neighbour_distances(frames)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -0.1])
def test_a_broken_distance_is_named(wrong):
    measures = (
        smoothness,
        lambda distances: directness(distances, 1),
        lambda distances: ppl([distances]),
        lambda distances: pdv([distances]),
        lambda distances: segments(distances, [0, 4]),
    )
    for measure in measures:
        with pytest.raises(ValueError, match="between frames 2 and 3"):
            measure([0.1, 0.1, wrong, 0.1])
    with pytest.raises(ValueError, match="one row"):
        smoothness([[0.1]])
