import numpy as np
import pytest
import skimage.metrics
import torch
import torchmetrics.functional.image as torchmetrics

from pipeline.distances.perceptual import PSNR_CAP, perceptual, psnr, ssim
from tests.distances.samples import NAMES, distorted, picture, tensor


def flat(value, side=16):
    return torch.full((1, 3, side, side), value)


def test_psnr_of_a_known_error():
    # Everywhere 0.1 apart: MSE 0.01, 10 log10(1 / 0.01) = 20 dB.
    assert psnr(flat(0.5), flat(0.6)).item() == pytest.approx(20, abs=1e-5)
    # One channel of three 0.3 apart: MSE 0.03.
    shifted = flat(0.5)
    shifted[:, 1] += 0.3
    assert psnr(flat(0.5), shifted).item() == pytest.approx(-10 * np.log10(0.03), abs=1e-5)


def test_psnr_is_one_figure_a_pair():
    first = torch.cat([flat(0.5), flat(0.5)])
    second = torch.cat([flat(0.6), flat(0.5)])
    assert psnr(first, second).tolist() == [pytest.approx(20, abs=1e-5), PSNR_CAP]


def test_psnr_of_the_smallest_visible_error_is_under_the_cap():
    nearly = flat(0.5, 128)
    nearly[0, 0, 0, 0] += 1 / 255
    assert 90 < psnr(flat(0.5, 128), nearly).item() < PSNR_CAP


def test_ssim_of_flat_pictures():
    # No variance: structure is C2 / C2 = 1, and luminance (2 x 0.4 x 0.6 + C1) / (0.4^2 + 0.6^2 + C1) with C1 = 1e-4.
    expected = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    assert ssim(flat(0.4), flat(0.6)).item() == pytest.approx(expected, abs=1e-7)


def test_ssim_of_a_negative_is_below_zero():
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert ssim(pixels, 1 - pixels).item() < -0.5


@pytest.mark.parametrize("size", [(11, 11), (17, 40), (96, 96)])
def test_psnr_and_ssim_equal_independent_implementations(size):
    plain = picture("astronaut")[: size[0], : size[1]]
    noisy = np.clip(plain + 0.05 * np.random.default_rng(1).standard_normal(plain.shape), 0, 1)
    first, second = tensor(plain).double(), tensor(noisy).double()
    ours = psnr(first, second).item(), ssim(first, second).item()

    a, b = (pixels[0].permute(1, 2, 0).numpy() for pixels in (first, second))
    of_skimage = skimage.metrics.structural_similarity(
        a, b, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ours[0] == pytest.approx(skimage.metrics.peak_signal_noise_ratio(a, b, data_range=1), abs=1e-9)
    assert ours[1] == pytest.approx(of_skimage, abs=1e-9)

    of_torchmetrics = torchmetrics.peak_signal_noise_ratio(first, second, data_range=1.0)
    assert ours[0] == pytest.approx(of_torchmetrics.item(), abs=1e-5)
    # torchmetrics counts a rim too, where the window reaches into mirrored pixels; Wang et al. do not.
    _, everywhere = torchmetrics.structural_similarity_index_measure(
        first, second, data_range=1.0, return_full_image=True
    )
    assert ours[1] == pytest.approx(everywhere[..., 5:-5, 5:-5].mean().item(), abs=1e-9)


@pytest.mark.parametrize(("measure", "best"), [(psnr, PSNR_CAP), (ssim, 1.0), (perceptual, 0.0)])
def test_equal_pictures_are_as_near_as_can_be_and_both_ways_are_equally_far(measure, best):
    first, second = tensor(picture("coffee")), tensor(picture("rocket"))
    assert measure(first, first).item() == pytest.approx(best, abs=1e-12)
    assert measure(first, second).item() == measure(second, first).item()
    assert abs(measure(first, second).item() - best) > 0.1


@pytest.mark.parametrize("measure", [psnr, ssim, perceptual])
def test_wrong_pictures_are_refused_by_index(measure):
    good = torch.full((3, 3, 32, 32), 0.5)
    for wrong in (float("nan"), float("inf"), -1.0, 255.0):
        bad = good.clone()
        bad[2, 1, 0, 0] = wrong
        with pytest.raises(ValueError, match=r"second\[2\]"):
            measure(good, bad)
    with pytest.raises(ValueError, match="one shape"):
        measure(good, good[:2])
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        measure(good[:, :1], good[:, :1])
    with pytest.raises(ValueError, match="uint8"):
        measure(good.byte(), good.byte())


@pytest.mark.parametrize("measure", [ssim, perceptual])
def test_pictures_too_small_for_a_measure_are_refused(measure):
    small = torch.rand(1, 3, 40, 10)
    with pytest.raises(ValueError, match="10x40 px"):
        measure(small, small)


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
