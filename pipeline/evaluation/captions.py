"""The captions that frames between keyframes were generated with."""

from collections.abc import Sequence

import torch

from pipeline.base.conditioning import Conditioning


def captions_between(captions: Conditioning, alphas: Sequence[Sequence[float]]) -> Conditioning:
    """The F captions of all frames between keyframes: linear between the two keyframes' at alpha.

    captions: the K keyframes'. alphas: by segment, both ends included; as many segments as keyframes make a loop, whose
    last segment leads back to the first keyframe.
    """
    inner = [(segment, alpha) for segment, row in enumerate(alphas) for alpha in row[1:-1]]
    first = torch.tensor([segment for segment, _ in inner], dtype=torch.long)
    weights = torch.tensor([alpha for _, alpha in inner])
    return Conditioning.lerp(captions.take(first), captions.take((first + 1) % len(captions)), weights)
