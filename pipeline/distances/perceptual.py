"""The perceptual distance between pictures, without learned weights."""

from torch import Tensor

from pipeline.distances.checks import check_pairs
from pipeline.distances.features import extract, feature_distance


def perceptual(first: Tensor, second: Tensor) -> Tensor:
    """Perceptual distance of each pair, (N,) float32 on the pictures' device: 0 for equal pictures, higher is farther.

    first, second: (N, 3, H, W) in [0, 1]. To compare a picture more than once, extract its features once and use
    `features.feature_distance`. Raises ValueError for other shapes and values, and for a side under 16 px.
    """
    check_pairs(first, second)
    return feature_distance(extract(first), extract(second))
