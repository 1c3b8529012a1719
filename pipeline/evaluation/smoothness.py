"""How smooth a morph is, from the distances between its frames: how evenly it moves, and how long its path is.

Figures are Python floats and NumPy float64, always finite: they go to JSON and to a tracking server as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pipeline.distances.checks import check_pictures
from pipeline.distances.features import Features, extract, feature_distance

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Smoothness:
    """How evenly a path is spread over its steps, from the distances d_i between neighbouring frames.

    sum: the path's length, sum of d_i. variance: mean of (d_i - mean)^2, over the steps at hand and not an estimate for
    more. std: its root. max_over_mean: the longest step over the mean step; 1 for an even pace, N - 1 for one jump
    between stills.
    """

    sum: float
    variance: float
    std: float
    max_over_mean: float


def neighbour_distances(frames: Tensor | Features) -> Floats:
    """Perceptual distance between each frame and the next, (N - 1,): N frames cost N passes of the extractor.

    frames: (N, 3, H, W) in [0, 1], or their features. One frame gives none. Raises ValueError that names the frame for
    other shapes and values, NaN included.
    """
    if isinstance(frames, Features):
        features = frames
    else:
        check_pictures(frames, "frames")
        features = extract(frames)
    if len(features) < 2:
        return np.zeros(0)
    distances = feature_distance(features[:-1], features[1:]).cpu().double().numpy()
    return _checked(distances)


def smoothness(distances: ArrayLike) -> Smoothness:
    """Sum, variance, standard deviation and max over mean of the distances between neighbouring frames, (N - 1,).

    Over the whole path, across keyframes; `ppl` and `pdv` take each pair of keyframes for itself. Frames that are all
    equal, and a single frame, move evenly by definition: everything 0 and max_over_mean 1. Raises ValueError for a
    distance that is NaN, infinite or negative, naming its frames.
    """
    steps = _checked(distances)
    if not steps.any():
        return Smoothness(sum=0.0, variance=0.0, std=0.0, max_over_mean=1.0)
    return Smoothness(
        sum=float(steps.sum()),
        variance=float(steps.var()),
        std=float(steps.std()),
        max_over_mean=float(steps.max() / steps.mean()),
    )


def segments(distances: ArrayLike, stops: Sequence[int]) -> list[Floats]:
    """The distances (N - 1,) between neighbouring frames, split at the keyframes into K - 1 segments.

    stops: (K,), which frame lies at each keyframe. Raises ValueError unless they rise from the first frame to the last.
    """
    steps = _checked(distances)
    if len(stops) < 2 or stops[0] != 0 or stops[-1] != steps.size or (np.diff(stops) <= 0).any():
        raise ValueError(f"stops {list(stops)}: expected to rise from frame 0 to frame {steps.size}")
    return np.split(steps, list(stops[1:-1]))


def ppl(segments: Sequence[ArrayLike]) -> float:
    """Perceptual path length as DiffMorpher reports it (Zhang et al. 2024, sec. 4.4): lower is smoother.

    The sum of the distances between neighbouring frames from one keyframe to the next; the mean over `segments`, one
    row of distances for each pair of keyframes. The paper's distance is LPIPS with AlexNet and its segments have 17
    frames; its table is scaled by a constant that it does not name (a mean step of 1.3, which LPIPS does not reach).

    StyleGAN's PPL (Karras et al. 2019, sec. 4.1) is another figure: the expectation of d(G(t), G(t + eps)) / eps^2 over
    short random steps in a generator's latent space, not the length of a path.
    """
    return fmean(float(_checked(distances).sum()) for distances in segments)


def pdv(segments: Sequence[ArrayLike]) -> float:
    """Perceptual distance variance as DiffMorpher reports it (Zhang et al. 2024, sec. 4.4): lower is more even.

    The variance of the distances between neighbouring frames from one keyframe to the next, over the steps at hand and
    not an estimate for more; the mean over `segments`. As for `ppl`, the paper's distance is LPIPS and its table is
    scaled.
    """
    return fmean(float(_checked(distances).var()) for distances in segments)


def directness(distances: ArrayLike, keyframe_distances: ArrayLike) -> float | None:
    """Length of the path over the length of the straight line: 1 is the shortest there is, more is a detour.

    distances: (N - 1,) between neighbouring frames. keyframe_distances: (K - 1,), or one number, between each generated
    keyframe and the next: with one segment the distance of the path's ends, with more of them each segment counts for
    itself, so that a morph which returns to its start has a straight line too. A cross-fade lies near 1, a motion well
    above: a low figure alone is no merit.

    A path of no length between equal keyframes gives 1. One that leaves and returns to an equal keyframe has no such
    figure: None. Raises ValueError for a distance that is NaN, infinite or negative.
    """
    path = float(_checked(distances).sum())
    straight = float(_checked(np.atleast_1d(np.asarray(keyframe_distances, dtype=np.float64))).sum())
    if straight == 0:
        return 1.0 if path == 0 else None
    return path / straight


def _checked(distances: ArrayLike) -> Floats:
    steps = np.asarray(distances, dtype=np.float64)
    if steps.ndim != 1:
        raise ValueError(f"distances: expected one row, found shape {steps.shape}")
    wrong = np.flatnonzero(~(np.isfinite(steps) & (steps >= 0)))
    if wrong.size:
        first = int(wrong[0])
        raise ValueError(
            f"distance between frames {first} and {first + 1} is {steps[first]}, expected a finite number of 0 or more"
        )
    return steps
