import numpy as np
import pytest
import torch

from pipeline.distances.perceptual import perceptual
from pipeline.evaluation.fidelity import ssim
from tests.distances.samples import NAMES, distorted, picture, tensor


def test_equal_pictures_have_no_distance_and_both_ways_are_equally_far():
    first, second = tensor(picture("coffee")), tensor(picture("rocket"))
    assert perceptual(first, first).item() == pytest.approx(0, abs=1e-12)
    assert perceptual(first, second).item() == perceptual(second, first).item() > 0.1


def test_wrong_pictures_are_refused_by_index():
    good = torch.full((3, 3, 32, 32), 0.5)
    for wrong in (float("nan"), float("inf"), -1.0, 255.0):
        bad = good.clone()
        bad[2, 1, 0, 0] = wrong
        with pytest.raises(ValueError, match=r"second\[2\]"):
            perceptual(good, bad)
    with pytest.raises(ValueError, match="one shape"):
        perceptual(good, good[:2])
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        perceptual(good[:, :1], good[:, :1])
    with pytest.raises(ValueError, match="uint8"):
        perceptual(good.byte(), good.byte())


def test_pictures_too_small_for_features_are_refused():
    small = torch.rand(1, 3, 40, 10)
    with pytest.raises(ValueError, match="10x40 px"):
        perceptual(small, small)


@pytest.mark.parametrize("name", NAMES)
def test_perceptual_distance_orders_as_ssim_does_within_a_kind_of_distortion(name):
    # Between kinds the two disagree on purpose: SSIM takes a shift of one pixel for a ruin and does not see a tint.
    plain = tensor(picture(name))
    kinds = distorted(name)
    for kind in ("blur", "noise", "darkening"):
        pictures = torch.cat([tensor(pixels) for pixels in kinds[kind]])
        same = plain.expand_as(pictures)
        nearer = np.argsort(perceptual(same, pictures).numpy())
        assert nearer.tolist() == np.argsort(-ssim(same, pictures).numpy()).tolist(), kind
