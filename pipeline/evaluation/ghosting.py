"""Ghosting: how far frames are two pictures laid over each other, as the eye sees it in a cross-fade."""

from collections.abc import Iterable
from statistics import fmean

import torch
from torch.nn import functional as F

Segment = tuple[torch.Tensor, torch.Tensor, Iterable[torch.Tensor]]
"""The frames (3, H, W) at both ends of a segment, and those between."""

SHARE = 1 / 64
"""Standard deviation of the blur that takes structure away, in shares of the shorter side; 1 pixel at least."""


def ghosting(segments: Iterable[Segment]) -> float:
    """The share of a frame's structure that only both ends laid over each other explain, the mean over frames between.

    0: no frame is a double exposure; so are a cut and a single still. One frame has 0.5 at most, where two unrelated
    pictures show equally; a cross-fade has about 0.2 over its length. It asks no model, and so holds for pictures of
    any kind. It does not see a frame that is neither picture, blurred or broken.
    """
    return fmean(overlaid(f, a, b) for a, b, between in _structures(segments) for f in between)


def overlaid(frame: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> float:
    """R² of the best a * first + b * last with a, b >= 0, minus that of the better end alone. Structures (D,) float64.

    R² is the share of a frame's sum of squares that is explained. Where a or b would be negative, one end explains all
    that both do: 0.
    """
    aa, bb, ff, ab, af, bf = (
        float(x @ y)
        for x, y in ((first, first), (last, last), (frame, frame), (first, last), (first, frame), (last, frame))
    )
    determinant = aa * bb - ab * ab
    if ff == 0 or determinant <= 1e-9 * aa * bb or bb * af <= ab * bf or aa * bf <= ab * af:
        return 0.0
    both = (bb * af * af - 2 * ab * af * bf + aa * bf * bf) / determinant
    return (both - max(max(af, 0.0) ** 2 / aa, max(bf, 0.0) ** 2 / bb)) / ff


def structure(picture: torch.Tensor) -> torch.Tensor:
    """What of a picture (3, H, W) is finer than its blurred self, (3 H W,) float64: edges and texture, not light."""
    sigma = max(1.0, min(picture.shape[-2:]) * SHARE)
    reach = int(3 * sigma + 0.5)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    sharp = picture.double().cpu()[:, None]
    wide = F.pad(sharp, (reach, reach, reach, reach), mode="reflect")
    blurred = F.conv2d(F.conv2d(wide, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return (sharp - blurred).flatten()


def _structures(segments: Iterable[Segment]) -> Iterable[Segment]:
    for first, last, between in segments:
        yield structure(first), structure(last), map(structure, between)
