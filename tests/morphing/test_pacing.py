from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

import pytest
import torch

from pipeline.morphing.pacing import bisected, even_alphas, narrowest, paced_frames
from tests.reference import repaced_alphas


def paced(way: Callable[[float], float], frames: int, spare: int) -> tuple[list[float], list[float]]:
    """Alphas, and all that was made, where the frame at alpha is the place on a way."""
    made: list[float] = []

    def make(alphas: torch.Tensor) -> torch.Tensor:
        made.extend(alphas.tolist())
        return torch.tensor([[way(alpha)] for alpha in alphas.tolist()], dtype=torch.float64)

    def look(alphas: Sequence[float], latents: torch.Tensor) -> list[float]:
        assert latents[:, 0].tolist() == [way(alpha) for alpha in alphas]
        return latents[:, 0].tolist()

    alphas, latents = paced_frames(make, look, lambda a, b: abs(a - b), frames, spare)
    assert latents[:, 0].tolist() == [way(alpha) for alpha in alphas.tolist()], "the frames are those at the alphas"
    assert len(made) == len(set(made)) == frames + spare, "each is made once"
    return alphas.tolist(), made


def widest_over_mean(way: Callable[[float], float], alphas: list[float]) -> float:
    gaps = [abs(way(b) - way(a)) for a, b in pairwise(alphas)]
    return max(gaps) / (sum(gaps) / len(gaps))


def jump(alpha: float) -> float:
    """Even but for one sudden change, a fifth of the way within 0.01."""
    return alpha + 0.25 * min(1.0, max(0.0, (alpha - 0.4371) / 0.01))


def bend(alpha: float) -> float:
    return 1 / (1 + 2.718281828 ** (-12 * (alpha - 0.4)))


@pytest.mark.parametrize(("way", "most"), [(bend, 1.42), (jump, 1.6)])
def test_neighbours_are_about_equally_far_apart(way: Callable[[float], float], most: float) -> None:
    for frames in (9, 16, 40):
        alphas, _ = paced(way, frames, 9)
        assert alphas == sorted(alphas) and alphas[0] == 0 and alphas[-1] == 1 and len(alphas) == frames
        assert widest_over_mean(way, alphas) < most < widest_over_mean(way, even_alphas(frames).tolist())


def test_a_jump_is_found_that_another_pass_puts_elsewhere() -> None:
    """Fewer steps move a sudden change; frames placed by them jump where they are shown."""

    def coarse(alpha: float) -> float:
        return jump(alpha + 0.02)

    measured = even_alphas(17)
    steps = torch.tensor([coarse(b) - coarse(a) for a, b in pairwise(measured.tolist())])
    by_coarse_pass = repaced_alphas(measured, steps, 16).tolist()
    assert widest_over_mean(jump, paced(jump, 16, 9)[0]) < 1.6 < 3 < widest_over_mean(jump, by_coarse_pass)


def test_more_spare_frames_make_it_no_less_even() -> None:
    widths = [widest_over_mean(jump, paced(jump, 16, spare)[0]) for spare in (0, 3, 9, 20)]
    assert widths == sorted(widths, reverse=True) and widths[-1] < widths[0]


@pytest.mark.parametrize("frames", [2, 3, 4, 16])
@pytest.mark.parametrize("spare", [0, 1, 9])
def test_where_nothing_moves_or_is_no_number_the_spacing_is_nearly_even(frames: int, spare: int) -> None:
    for value in (0.0, float("nan"), float("inf")):

        def distance(a: float, b: float, value: float = value) -> float:
            return value

        alphas, _ = paced_frames(
            lambda alphas: alphas[:, None], lambda alphas, made: made.tolist(), distance, frames, spare
        )
        gaps = alphas.diff()
        assert float(gaps.min()) > 0 and float(gaps.max()) < 2.01 / (frames - 1)


def test_steps_without_a_middle_are_not_split_for_ever() -> None:
    def cliff(alpha: float) -> float:
        return float(alpha > 0.3)

    alphas, made = paced(cliff, 5, 200)
    assert min(b - a for a, b in pairwise(sorted(made))) > 1e-7
    assert len(alphas) == 5


def test_the_widest_gaps_are_bisected_first() -> None:
    assert bisected([0, 0.5, 1], [4, 1], 1) == [0.25]
    assert bisected([0, 0.5, 1], [4, 1], 4) == [0.0625, 0.125, 0.25, 0.375]
    assert bisected([0, 0.5, 1], [3, 2], 2) == [0.25, 0.75]


@pytest.mark.parametrize(("count", "keep"), [(9, 9), (9, 6), (10, 3), (8, 2)])
def test_what_is_left_out_is_the_best_of_all_choices(count: int, keep: int) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        places = torch.rand(count, 2, generator=generator, dtype=torch.float64)

        def distance(i: int, j: int, places: torch.Tensor = places) -> float:
            return float((places[i] - places[j]).norm())

        def weight(inner: tuple[int, ...], distance: Callable[[int, int], float] = distance) -> tuple[float, float]:
            gaps = [distance(i, j) for i, j in pairwise((0, *inner, count - 1))]
            return max(gaps), sum(gap * gap for gap in gaps)

        best = min(combinations(range(1, count - 1), keep - 2), key=weight)
        assert narrowest(count, keep, distance) == [0, *best, count - 1]
