"""The captions that frames between keyframes were generated with."""

from collections.abc import Sequence

import torch
from torch import Tensor


def captions_between(captions: Tensor, alphas: Sequence[Sequence[float]]) -> Tensor:
    """Caption embeddings (F, L, D) of all frames between keyframes: linear between the two keyframes' at alpha.

    captions: the keyframes', (K, L, D). alphas: by segment, both ends included; as many segments as keyframes make a
    loop, whose last segment leads back to the first keyframe.
    """
    inner = [(segment, alpha) for segment, row in enumerate(alphas) for alpha in row[1:-1]]
    first = torch.tensor([segment for segment, _ in inner], dtype=torch.long)
    weights = torch.tensor([alpha for _, alpha in inner]).to(captions)
    return torch.lerp(captions[first], captions[(first + 1) % len(captions)], weights.view(-1, 1, 1))
