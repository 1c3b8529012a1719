"""The captions that frames between keyframes were generated with."""

from collections.abc import Sequence

import torch

from pipeline.base.conditioning import Conditioning

Position = tuple[int, float]
"""A segment, from 0, and alpha in it."""


def positions_between(alphas: Sequence[Sequence[float]]) -> list[Position]:
    """Where the frames between keyframes lie. alphas: by segment, both ends included."""
    return [(segment, alpha) for segment, row in enumerate(alphas) for alpha in row[1:-1]]


def mixed(captions: Conditioning, positions: Sequence[Position]) -> Conditioning:
    """The captions of frames: linear between the two keyframes' at alpha.

    captions: the K keyframes'. The last segment of a loop leads back to the first keyframe.
    """
    first = torch.tensor([segment for segment, _ in positions], dtype=torch.long)
    weights = torch.tensor([alpha for _, alpha in positions])
    return Conditioning.lerp(captions.take(first), captions.take((first + 1) % len(captions)), weights)
