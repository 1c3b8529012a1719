import math

import pytest
import torch

from pipeline.morphing.diffmorpher import adain
from pipeline.morphing.interpolation import lerp, slerp
from tests.reference import slerp_by_hand


def test_slerp_halfway_between_unit_axes_lies_on_the_circle() -> None:
    a, b = torch.zeros(2, 1, 1, 2)
    a[0, 0, 0], b[0, 0, 1] = 1, 1
    halfway = slerp(a, b, torch.tensor([0.5]))[0]
    assert halfway.flatten().tolist() == pytest.approx([math.sqrt(0.5)] * 2)


def test_slerp_equals_the_formula_and_its_ends_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    alphas = torch.tensor([0.0, 0.3, 0.9, 1.0])
    got = slerp(a, b, alphas)
    for frame, alpha in zip(got, alphas.double(), strict=True):
        assert torch.allclose(frame, slerp_by_hand(a, b, float(alpha)), atol=1e-7)
    assert torch.allclose(got[0], a) and torch.allclose(got[-1], b)


def test_slerp_keeps_the_norm_that_lerp_loses() -> None:
    a, b = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    alphas = torch.tensor([0.5])
    assert slerp(a, b, alphas).std() == pytest.approx(1, abs=0.05)
    assert lerp(a, b, alphas).std() < 0.8


def test_slerp_of_equal_and_of_opposite_vectors_is_finite() -> None:
    a = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(2))
    alphas = torch.linspace(0, 1, 5)
    assert torch.allclose(slerp(a, a, alphas), a.expand(5, -1, -1, -1), atol=1e-6)
    assert slerp(a, -a, alphas).isfinite().all()
    assert slerp(torch.zeros_like(a), a, alphas).isfinite().all()


def test_adain_gives_every_frame_the_statistics_between_its_ends() -> None:
    generator = torch.Generator().manual_seed(3)
    x0, x1 = torch.randn(4, 8, 8, generator=generator), 3 + 2 * torch.randn(4, 8, 8, generator=generator)
    frames = adain(torch.randn(3, 4, 8, 8, generator=generator), x0, x1, torch.tensor([0.0, 0.25, 1.0]))
    for frame, alpha in zip(frames, (0.0, 0.25, 1.0), strict=True):
        mean = (1 - alpha) * x0.mean((1, 2)) + alpha * x1.mean((1, 2))
        std = (1 - alpha) * x0.std((1, 2)) + alpha * x1.std((1, 2))
        assert torch.allclose(frame.mean((1, 2)), mean, atol=1e-5)
        assert torch.allclose(frame.std((1, 2)), std, atol=1e-5)


def test_adain_leaves_the_ends_as_they_are() -> None:
    x0, x1 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    ends = adain(torch.stack([x0, x1]), x0, x1, torch.tensor([0.0, 1.0]))
    assert torch.allclose(ends, torch.stack([x0, x1]), atol=1e-5)


def test_adain_of_a_flat_latent_is_finite() -> None:
    flat = torch.full((1, 4, 8, 8), 2.0)
    assert adain(flat, flat[0], flat[0], torch.tensor([0.5])).isfinite().all()
