import json
from dataclasses import asdict

import numpy as np
import pytest
import skimage.metrics
import torch
from scipy.ndimage import gaussian_filter

from pipeline.distances.perceptual import perceptual
from pipeline.evaluation.fidelity import PSNR_CAP, TILE, fidelity, psnr, ssim
from tests.distances.samples import PHOTOGRAPHS, picture, stack, tensor


def flat(value, side=16):
    return torch.full((1, 3, side, side), value)


# PSNR


def test_psnr_of_a_known_error():
    # Everywhere 0.1 apart: MSE 0.01, 10 log10(1 / 0.01) = 20 dB.
    assert psnr(flat(0.5), flat(0.6)).item() == pytest.approx(20, abs=1e-5)
    # One channel of three 0.3 apart: MSE 0.03.
    shifted = flat(0.5)
    shifted[:, 1] += 0.3
    assert psnr(flat(0.5), shifted).item() == pytest.approx(-10 * np.log10(0.03), abs=1e-5)


def test_psnr_is_one_figure_per_pair():
    first = torch.cat([flat(0.5), flat(0.5)])
    second = torch.cat([flat(0.6), flat(0.5)])
    assert psnr(first, second).tolist() == [pytest.approx(20, abs=1e-5), PSNR_CAP]


def test_psnr_of_the_smallest_visible_error_is_under_the_cap():
    nearly = flat(0.5, 128)
    nearly[0, 0, 0, 0] += 1 / 255
    assert 90 < psnr(flat(0.5, 128), nearly).item() < PSNR_CAP


# SSIM


def test_ssim_of_flat_pictures():
    # No variance: structure is C2 / C2 = 1, and luminance (2 x 0.4 x 0.6 + C1) / (0.4^2 + 0.6^2 + C1) with C1 = 1e-4.
    expected = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    assert ssim(flat(0.4), flat(0.6)).item() == pytest.approx(expected, abs=1e-7)


def test_ssim_of_a_negative_is_below_zero():
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert ssim(pixels, 1 - pixels).item() < -0.5


def ssim_by_loops(a, b):
    """Wang et al. 2004, eq. 13, window by window, for (H, W, 3) float64; only windows that lie wholly inside."""
    offset = np.arange(11) - 5
    window = np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for channel in range(3):
        for row in range(a.shape[0] - 10):
            for column in range(a.shape[1] - 10):
                x, y = (pixels[row : row + 11, column : column + 11, channel] for pixels in (a, b))
                mean_x, mean_y = (window * x).sum(), (window * y).sum()
                variance_x = (window * (x - mean_x) ** 2).sum()
                variance_y = (window * (y - mean_y) ** 2).sum()
                covariance = (window * (x - mean_x) * (y - mean_y)).sum()
                luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
                values.append(luminance * (2 * covariance + 9e-4) / (variance_x + variance_y + 9e-4))
    return np.mean(values)


@pytest.mark.parametrize("size", [(11, 11), (17, 40), (11 + TILE, 30), (96, 96)])
def test_psnr_and_ssim_equal_independent_implementations(size):
    plain = picture("astronaut")[: size[0], : size[1]]
    noisy = np.clip(plain + 0.05 * np.random.default_rng(1).standard_normal(plain.shape), 0, 1)
    first, second = tensor(plain).double(), tensor(noisy).double()
    a, b = (pixels[0].permute(1, 2, 0).numpy() for pixels in (first, second))

    ours = psnr(first, second).item()
    assert ours == pytest.approx(skimage.metrics.peak_signal_noise_ratio(a, b, data_range=1), abs=1e-9)
    assert ours == pytest.approx(-10 * np.log10(((a - b) ** 2).mean()), abs=1e-9)

    ours = ssim(first, second).item()
    of_skimage = skimage.metrics.structural_similarity(
        a, b, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ours == pytest.approx(of_skimage, abs=1e-9)
    assert ours == pytest.approx(ssim_by_loops(a, b), abs=1e-9)


def test_ssim_of_a_nearly_flat_picture_keeps_its_digits():
    """In float32 the variance of bright, faint texture would be lost in rounding."""
    grain = np.random.default_rng(0).standard_normal((2, 40, 40, 3))
    first, second = tensor(0.9 + 0.002 * grain[0]), tensor(0.9 + 0.002 * grain[1])
    a, b = (pixels[0].permute(1, 2, 0).double().numpy() for pixels in (first, second))
    assert ssim(first, second).item() == pytest.approx(ssim_by_loops(a, b), abs=1e-9)


# Both


@pytest.mark.parametrize(("metric", "best"), [(psnr, PSNR_CAP), (ssim, 1.0)])
def test_equal_pictures_score_best_and_the_order_does_not_matter(metric, best):
    first, second = tensor(picture("coffee")), tensor(picture("rocket"))
    assert metric(first, first).item() == pytest.approx(best, abs=1e-12)
    assert metric(first, second).item() == metric(second, first).item()
    assert abs(metric(first, second).item() - best) > 0.1


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_wrong_pictures_are_refused_by_index(metric):
    good = torch.full((3, 3, 32, 32), 0.5)
    for wrong in (float("nan"), float("inf"), -1.0, 255.0):
        bad = good.clone()
        bad[2, 1, 0, 0] = wrong
        with pytest.raises(ValueError, match=r"second\[2\]"):
            metric(good, bad)
    with pytest.raises(ValueError, match="one shape"):
        metric(good, good[:2])
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        metric(good[:, :1], good[:, :1])
    with pytest.raises(ValueError, match="uint8"):
        metric(good.byte(), good.byte())


def test_pictures_smaller_than_the_window_of_ssim_are_refused():
    small = torch.rand(1, 3, 40, 10)
    with pytest.raises(ValueError, match="10x40 px"):
        ssim(small, small)


# Fidelity


def test_fidelity_puts_the_floor_beside_each_endpoint():
    names = PHOTOGRAPHS[:2]
    keyframes = stack([picture(name) for name in names])
    reconstructed = stack([gaussian_filter(picture(name), (0.6, 0.6, 0)) for name in names])
    generated = stack([gaussian_filter(picture(name), (1.2, 1.2, 0)) for name in names])
    rows = fidelity(generated, reconstructed, keyframes)
    assert len(rows) == 2
    for index, row in enumerate(rows):
        one = slice(index, index + 1)
        assert row.psnr == psnr(generated[one], keyframes[one]).item()
        assert row.floor_ssim == ssim(reconstructed[one], keyframes[one]).item()
        assert row.perceptual == perceptual(generated[one], keyframes[one]).item()
        assert row.psnr_gap == row.floor_psnr - row.psnr > 1
        assert row.ssim < row.floor_ssim and row.perceptual > row.floor_perceptual


def test_fidelity_of_a_perfect_endpoint_is_finite_and_of_another_picture_is_bad():
    keyframe, other = tensor(picture("coffee")), tensor(picture("rocket"))
    (perfect,) = fidelity(keyframe, keyframe, keyframe)
    assert (perfect.psnr, perfect.psnr_gap, perfect.perceptual) == (100, 0, 0)
    assert json.loads(json.dumps(asdict(perfect), allow_nan=False))["ssim"] == pytest.approx(1)
    (wrong,) = fidelity(other, keyframe, keyframe)
    assert wrong.psnr < 15 and wrong.ssim < 0.6 and wrong.perceptual > 0.3 and wrong.psnr_gap > 80


def test_a_broken_endpoint_is_named():
    good = stack([picture("coffee")] * 3)
    bad = good.clone()
    bad[2, 0, 10, 10] = float("nan")
    with pytest.raises(ValueError, match=r"generated\[2\]"):
        fidelity(bad, good, good)
    with pytest.raises(ValueError, match=r"reconstructed\[2\]"):
        fidelity(good, bad, good)
