import pytest
import torch

from pipeline.morphing.pacing import even_alphas, repaced_alphas


def test_where_all_steps_are_equal_the_spacing_stays_even() -> None:
    assert repaced_alphas(even_alphas(5), torch.ones(4), 9).tolist() == pytest.approx(even_alphas(9).tolist())


def test_a_way_that_is_known_by_hand() -> None:
    """Three quarters of the way lie in the first half."""
    found = repaced_alphas(torch.tensor([0, 0.5, 1]), torch.tensor([3.0, 1.0]), 5)
    assert found.tolist() == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2, 1], abs=1e-5)


def test_frames_placed_so_are_equally_far_apart() -> None:
    def way(alpha: torch.Tensor) -> torch.Tensor:
        return 1 / (1 + torch.exp(-12 * (alpha - 0.4)))

    coarse = even_alphas(33)
    alphas = repaced_alphas(coarse, way(coarse).diff(), 9)
    steps = way(alphas).diff()
    assert float(steps.max() / steps.mean()) < 1.05 < float(way(even_alphas(9)).diff().max() / steps.mean())


@pytest.mark.parametrize("distances", [[0.0, 0.0, 0.0], [1.0, float("nan"), 1.0], [float("inf"), 1.0, 1.0]])
def test_identical_frames_and_what_is_no_number_leave_the_spacing_even(distances: list[float]) -> None:
    assert repaced_alphas(even_alphas(4), torch.tensor(distances), 6).tolist() == pytest.approx(even_alphas(6).tolist())


def test_a_flat_stretch_is_passed_quickly_and_alphas_rise_all_the_same() -> None:
    found = repaced_alphas(even_alphas(4), torch.tensor([1.0, 0.0, 1.0]), 7)
    assert bool((found.diff() > 0).all()) and found[0] == 0 and found[-1] == 1
    assert int(((found > 1 / 3 + 1e-6) & (found < 2 / 3 - 1e-6)).sum()) <= 1
