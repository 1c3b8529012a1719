"""Clips that begin and end on the real pictures: what the generated ends lack of them is added, and fades out."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.frames.tensors import Frame, LazyFrames, from_arrays, to_arrays


@dataclass(frozen=True)
class RealEnds(LazyFrames):
    """The frames of a film, each corrected by `with_real_ends` when it is asked for.

    pictures: (K, 3, H, W), the real keyframes, which lie at frames `stops`. alphas: by segment, both ends included; of
    a loop, the last segment leads from the last frame to the first. reach: see `with_real_ends`.
    """

    frames: Sequence[Frame]
    pictures: torch.Tensor
    stops: Sequence[int]
    alphas: Sequence[Sequence[float]]
    reach: float

    def __len__(self) -> int:
        return len(self.frames)

    def frame(self, number: int) -> Frame:
        """Corrected."""
        segment = min(bisect_right(self.stops, number) - 1, len(self.alphas) - 1)
        first, second = segment, (segment + 1) % len(self.stops)
        three = from_arrays([self.frames[place] for place in (self.stops[first], number, self.stops[second])])
        alphas = torch.tensor([0.0, self.alphas[segment][number - self.stops[first]], 1.0])
        corrected = with_real_ends(three, alphas, self.pictures[first], self.pictures[second], self.reach)
        return to_arrays(corrected[1:2])[0]


def with_real_ends(
    frames: torch.Tensor, alphas: torch.Tensor, first: torch.Tensor, second: torch.Tensor, reach: float
) -> torch.Tensor:
    """Add to frames (F, 3, H, W) what their ends lack of the real pictures (3, H, W), fading over `reach` of the way.

    Autoencoder and inversion each lose a little; a clip that rests on its ends shows it. With a cosine's fall, since a
    corner in time is seen.
    """
    if reach == 0:
        return frames
    near = 0.5 * (1 + torch.cos(torch.pi * (alphas / reach).clamp(max=1)))
    far = 0.5 * (1 + torch.cos(torch.pi * ((1 - alphas) / reach).clamp(max=1)))
    lacking = (near, first - frames[0]), (far, second - frames[-1])
    return (frames + sum(share.to(frames).view(-1, 1, 1, 1) * part for share, part in lacking)).clamp(0, 1)
