"""Distances between pictures. Each takes two stacks (N, 3, H, W) in [0, 1] and gives one figure a pair."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.distances.checks import check_pairs
from pipeline.distances.features import extract, feature_distance

PSNR_CAP = 100.0  # dB
SSIM_WINDOW = 11  # px
SSIM_SIGMA = 1.5  # px


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair, (N,) float64 on the CPU, in dB: higher is nearer.

    PSNR = 10 log10(1 / MSE), the mean over all pixels and channels. Equal pictures give PSNR_CAP, 100 dB, not infinity,
    which neither JSON nor a mean over frames can hold; nothing above it is told apart (MSE under 1e-10).
    Raises ValueError for other shapes and values.
    """
    check_pairs(first, second)
    error = (_exact(first) - _exact(second)).square().mean((1, 2, 3))
    return -10 * error.clamp(min=10 ** (-PSNR_CAP / 10)).log10()


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of each pair, (N,) float64 on the CPU, -1 to 1: higher is nearer, 1 for equal pictures.

    Wang et al. 2004, eq. 13, Gaussian window of 11 px and sigma 1.5 px, K1 = 0.01, K2 = 0.03, peak 1; the mean over the
    three sRGB channels and over all places where the window lies wholly inside the picture.
    Raises ValueError for other shapes and values, and for a side under 11 px.
    """
    check_pairs(first, second)
    height, width = first.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"pictures of {width}x{height} px: SSIM needs {SSIM_WINDOW} px on the shorter side")
    x, y = _exact(first).flatten(0, 1)[:, None], _exact(second).flatten(0, 1)[:, None]
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    # In float64 the difference of two nearly equal numbers still has digits to spare beside C2.
    variance_x = _window_mean(x * x) - mean_x**2
    variance_y = _window_mean(y * y) - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).view(len(first), -1).mean(1)


def perceptual(first: Tensor, second: Tensor) -> Tensor:
    """Perceptual distance of each pair, (N,) float32 on the pictures' device: 0 for equal pictures, higher is farther.

    The embedded extractor of `features.py`: no weights, no download. To compare a picture more than once, take its
    features once and use `features.feature_distance`. Raises ValueError for other shapes and values, and for a side
    under 16 px.
    """
    check_pairs(first, second)
    return feature_distance(extract(first), extract(second))


def _exact(pictures: Tensor) -> Tensor:
    # The CPU, because MPS has no float64.
    return pictures.cpu().double()


def _window_mean(planes: Tensor) -> Tensor:
    """Gaussian mean around every pixel where the window fits: (M, 1, H, W) to (M, 1, H - 10, W - 10)."""
    offset = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    row = torch.exp(-(offset**2) / (2 * SSIM_SIGMA**2))
    row /= row.sum()
    return F.conv2d(F.conv2d(planes, row.view(1, 1, 1, -1)), row.view(1, 1, -1, 1))
