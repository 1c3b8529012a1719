"""What an edit kept of a picture, and how near it came to the manner of others."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.distances.checks import check_pairs
from pipeline.distances.features import extract, lab

BLUR_SHARE = 1 / 64
"""Of the shorter side: edges count as kept that lie within so little of where they were."""


def edges_kept(before: Tensor, after: Tensor) -> Tensor:
    """How much the edges of each pair agree, (N,) float32: 1 for equal ones, about 0 for unrelated pictures.

    The correlation of the lengths of both lightness gradients (central differences of CIELAB's L*), blurred. before,
    after: (N, 3, H, W) in [0, 1]. Raises ValueError for other shapes and values.
    """
    check_pairs(before, after)
    return _correlation(_edges(before), _edges(after))


def manner_of(pictures: Tensor) -> Tensor:
    """The manner of each picture (N, M): what its perceptual features are on average and how much they vary, wherever.

    For each octave and channel the mean and standard deviation over places (after the style loss of Huang and Belongie,
    ICCV 2017, with features that no one trained). pictures: (N, 3, H, W) in [0, 1]. M depends on their size.
    """
    features = extract(pictures)
    return torch.cat(
        [part for octave in features.octaves for part in (octave.mean((2, 3)), octave.std((2, 3), correction=0))], 1
    )


def style_distance(pictures: Tensor, style: Tensor) -> Tensor:
    """How far the manner of each picture is from that of a style, (N,) float32; 0 where it is the same.

    pictures: (N, 3, H, W) in [0, 1]. style: (M,), the mean of `manner_of` its pictures, which have the same size.
    """
    return (manner_of(pictures) - style).square().mean(1).sqrt()


def _edges(pictures: Tensor) -> Tensor:
    lightness = lab(pictures)[:, :1] / 100
    down = F.pad(lightness, (0, 0, 1, 1), mode="replicate")
    right = F.pad(lightness, (1, 1, 0, 0), mode="replicate")
    length = ((down[:, :, 2:] - down[:, :, :-2]).square() + (right[..., 2:] - right[..., :-2]).square()).sqrt()
    sigma = min(pictures.shape[-2:]) * BLUR_SHARE
    radius = max(1, round(3 * sigma))
    places = torch.arange(-radius, radius + 1, device=pictures.device, dtype=length.dtype)
    kernel = torch.exp(-(places**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(length, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1)).flatten(1)


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    first, second = (part - part.mean(1, keepdim=True) for part in (first, second))
    lengths = first.norm(dim=1) * second.norm(dim=1)
    # A picture without edges agrees with nothing but its like.
    empty = (first.norm(dim=1) == 0) & (second.norm(dim=1) == 0)
    return torch.where(empty, 1.0, (first * second).sum(1) / lengths.clamp(min=1e-12))
