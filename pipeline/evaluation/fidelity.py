"""Fidelity: how near a generated endpoint comes to its keyframe, beside what the autoencoder alone can do."""

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from pipeline.distances.checks import check_pairs, check_pictures
from pipeline.distances.perceptual import perceptual

PSNR_CAP = 100.0  # dB
SSIM_WINDOW = 11  # px
SSIM_SIGMA = 1.5  # px; torchmetrics cuts the Gaussian at 3.5 of these, which gives the 11 px
TILE = 32  # px


@dataclass(frozen=True)
class Fidelity:
    """How near a generated endpoint comes to its prepared keyframe, and how near the autoencoder alone: the floor.

    psnr, floor_psnr: dB. ssim, floor_ssim: at most 1. perceptual, floor_perceptual: at least 0. psnr_gap: floor_psnr -
    psnr in dB, what inversion and sampling cost beyond the autoencoder; negative where the endpoint is nearer than the
    floor.
    """

    psnr: float
    ssim: float
    perceptual: float
    floor_psnr: float
    floor_ssim: float
    floor_perceptual: float
    psnr_gap: float


def fidelity(generated: Tensor, reconstructed: Tensor, keyframes: Tensor) -> tuple[Fidelity, ...]:
    """Fidelity of each generated endpoint, one per keyframe.

    generated: endpoints as the sampler made them; reconstructed: keyframes encoded and decoded by the autoencoder;
    keyframes: as prepared. All (K, 3, H, W) in [0, 1]. Raises ValueError, naming the picture, for other shapes and
    values.
    """
    for name, pictures in (("generated", generated), ("reconstructed", reconstructed), ("keyframes", keyframes)):
        check_pictures(pictures, name)
    columns = [
        metric(pictures, keyframes).cpu().double().tolist()
        for pictures in (generated, reconstructed)
        for metric in (psnr, ssim, perceptual)
    ]
    columns.append([floor - reached for reached, floor in zip(columns[0], columns[3], strict=True)])
    return tuple(Fidelity(*row) for row in zip(*columns, strict=True))


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair, (N,) float64 on the CPU, in dB: higher is nearer.

    first, second: (N, 3, H, W) in [0, 1]. PSNR = 10 log10(1 / MSE), the mean over all pixels and channels. Capped at
    PSNR_CAP, 100 dB (MSE under 1e-10): equal pictures would give infinity, which neither JSON nor a mean over frames
    can hold. Raises ValueError for other shapes and values.
    """
    check_pairs(first, second)
    # torchmetrics divides by log(base) in float32, which costs the seventh digit; only log(e) = 1 is exact there.
    nepers = peak_signal_noise_ratio(
        _exact(first), _exact(second), data_range=1.0, base=math.e, reduction="none", dim=(1, 2, 3)
    )
    return (nepers / math.log(10)).clamp(max=PSNR_CAP)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of each pair, (N,) float64 on the CPU, -1 to 1: higher is nearer, 1 for equal pictures.

    first, second: (N, 3, H, W) in [0, 1]. Wang et al. 2004, eq. 13, Gaussian window of 11 px and sigma 1.5 px,
    K1 = 0.01, K2 = 0.03, peak 1; the mean over the three sRGB channels and over all places where the window lies wholly
    inside the picture. Raises ValueError for other shapes and values, and for a side under 11 px.
    """
    check_pairs(first, second)
    height, width = first.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"pictures of {width}x{height} px: SSIM needs {SSIM_WINDOW} px on the shorter side")
    return torch.stack([_mean_similarity(x[None], y[None]) for x, y in zip(_exact(first), _exact(second), strict=True)])


def _mean_similarity(x: Tensor, y: Tensor) -> Tensor:
    """SSIM of two pictures (1, 3, H, W) float64, a number: the mean over all places where the window fits."""
    border = SSIM_WINDOW // 2
    height, width = (side - 2 * border for side in x.shape[-2:])
    total = torch.zeros((), dtype=x.dtype)
    # Tile by tile: torch copies out the 121 px of every window for a convolution in float64. A tile's copies stay in
    # the cache; those of a whole picture of 768 px take 3 GB and seven times as long.
    for top, left in product(range(0, height, TILE), range(0, width, TILE)):
        tile = (..., slice(top, top + TILE + 2 * border), slice(left, left + TILE + 2 * border))
        _, similarity = structural_similarity_index_measure(
            x[tile], y[tile], sigma=SSIM_SIGMA, data_range=1.0, return_full_image=True
        )
        # torchmetrics also counts a border, where the window reaches into mirrored pixels; Wang et al. do not.
        total += similarity[..., border:-border, border:-border].sum()
    return total / (3 * height * width)


def _exact(pictures: Tensor) -> Tensor:
    # float64, so that the variance of nearly flat places keeps digits beside C2; the CPU, because MPS has no float64.
    return pictures.cpu().double()
