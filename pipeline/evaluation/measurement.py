"""All figures of one variant of a morph, from its frames and what they are compared with."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from pipeline.base.conditioning import Conditioning
from pipeline.base.protocol import Base
from pipeline.distances import features
from pipeline.evaluation import lpips
from pipeline.evaluation.captions import mixed, positions_between
from pipeline.evaluation.fidelity import fidelity
from pipeline.evaluation.ghosting import Segment, ghosting
from pipeline.evaluation.naturalness import naturalness, picture_errors
from pipeline.evaluation.smoothness import Floats, directness, pdv, ppl, segments, smoothness
from pipeline.processes.chunks import in_chunks

Figures = dict[str, float | None]
"""Figures by name; None where a morph has no such figure."""


class Pictures(Protocol):
    """N pictures in [0, 1] that are read when they are asked for, or a tensor (N, 3, H, W)."""

    def __len__(self) -> int: ...

    def __getitem__(self, numbers: list[int], /) -> Tensor:
        """Those of them, (n, 3, H, W)."""
        ...


@dataclass(frozen=True)
class Reference:
    """What the frames of every variant of a morph are compared with, for K keyframes.

    keyframes: (K, 3, H, W) in [0, 1], as prepared. floor: the same, encoded and decoded by the autoencoder alone.
    captions: of the K keyframes. stops: which frame lies at each keyframe. loop: whether one more
    segment leads from the last keyframe back to the first.
    """

    keyframes: Tensor
    floor: Tensor
    captions: Conditioning
    stops: Sequence[int]
    loop: bool


@dataclass(frozen=True)
class Measurement:
    """What was measured of one variant.

    distances: perceptual, between neighbouring frames, (N - 1,); of a loop (N,), the last one back to the first frame.
    """

    figures: Figures
    distances: Floats


def measure(
    frames: Pictures,
    alphas: Sequence[Sequence[float]],
    reference: Reference,
    base: Base,
    *,
    max_side: int,
    batch: int | None = None,
    learned: lpips.Lpips | None = None,
    generated_ends: bool = True,
    accelerator: Accelerator | None = None,
) -> Measurement:
    """Smoothness, fidelity, ghosting and naturalness of the N frames of a variant, of which few are read at a time.

    alphas: by segment, both ends included. base: judges the naturalness, `batch` latents at a time. max_side: px, what
    frames are shrunk to before distances between neighbours are measured. learned: measures those by LPIPS too.
    generated_ends: whether the frames at keyframes were generated; a cross-fade's are the keyframes themselves.
    accelerator: of the processes that share the work; each then reads its share of the frames.
    """
    way = [*range(len(frames)), *([0] if reference.loop else [])]
    stops = [*reference.stops, len(frames)] if reference.loop else reference.stops

    def along(way: Sequence[int], distances: Callable[[Iterable[Tensor]], Sequence[float]], min_side: int) -> Floats:
        def of_share(chunk: slice) -> Sequence[float]:
            return distances(_shrunk(frames, way[chunk.start : chunk.stop + 1], max_side, min_side))

        shares = in_chunks(len(way) - 1, None, of_share, accelerator)
        return np.array([distance for share in shares for distance in share])

    distances = along(way, perceptual_distances, features.SMALLEST_SIDE)
    straight = along([way[stop] for stop in stops], perceptual_distances, features.SMALLEST_SIDE)
    figures = smoothness_figures(distances, straight, stops)
    figures["ghosting"] = ghosting(_segments(frames, way, stops, max_side))
    if learned:
        figures |= lpips_figures(along(way, learned.neighbour_distances, lpips.SMALLEST_SIDE), stops)
    if generated_ends:
        figures |= endpoint_figures(frames[list(reference.stops)], reference.floor, reference.keyframes)
    between = [number for number in range(len(frames)) if number not in reference.stops]
    positions = positions_between(alphas)

    def errors_between(chunk: slice) -> Tensor:
        return picture_errors(base, frames[between[chunk]], mixed(reference.captions, positions[chunk]))

    def errors_at_keyframes(chunk: slice) -> Tensor:
        return picture_errors(base, reference.keyframes[chunk], reference.captions.take(chunk))

    figures["naturalness"] = naturalness(
        torch.cat(in_chunks(len(between), batch, errors_between, accelerator)),
        torch.cat(in_chunks(len(reference.keyframes), batch, errors_at_keyframes, accelerator)),
    )
    return Measurement(figures, distances)


def perceptual_distances(frames: Iterable[Tensor]) -> list[float]:
    """Between neighbours of N frames (3, H, W), N - 1; only two are in memory."""
    distances = list[float]()
    before: features.Features | None = None
    for frame in frames:
        now = features.extract(frame[None])
        if before is not None:
            distances.append(float(features.feature_distance(before, now)))
        before = now
    return distances


def smoothness_figures(distances: Floats, straight: Floats, stops: Sequence[int]) -> Figures:
    """From perceptual distances between neighbours of N frames, (N - 1,), and of K stops among them, (K - 1,)."""
    by_segment = segments(distances, stops)
    figures: Figures = {f"neighbours_{name}": value for name, value in asdict(smoothness(distances)).items()}
    return figures | {"directness": directness(distances, straight), "ppl": ppl(by_segment), "pdv": pdv(by_segment)}


def lpips_figures(distances: Floats, stops: Sequence[int]) -> Figures:
    """PPL and PDV from LPIPS between neighbours, (N - 1,), as papers report them."""
    by_segment = segments(distances, stops)
    return {"lpips_ppl": ppl(by_segment), "lpips_pdv": pdv(by_segment)}


def endpoint_figures(generated: Tensor, floor: Tensor, keyframes: Tensor) -> Figures:
    """Means over the generated endpoints (K, 3, H, W), and the worst of their gaps to the floor."""
    rows = [asdict(row) for row in fidelity(generated, floor, keyframes)]
    figures: Figures = {f"endpoints_{name}": fmean(row[name] for row in rows) for name in rows[0]}
    return figures | {"endpoints_worst_psnr_gap": max(row["psnr_gap"] for row in rows)}


def _segments(frames: Pictures, way: Sequence[int], stops: Sequence[int], max_side: int) -> Iterator[Segment]:
    for start, stop in pairwise(stops):
        first, last = _shrunk(frames, [way[start], way[stop]], max_side, features.SMALLEST_SIDE)
        yield first, last, _shrunk(frames, way[start + 1 : stop], max_side, features.SMALLEST_SIDE)


def _shrunk(frames: Pictures, way: Sequence[int], max_side: int, min_side: int) -> Iterator[Tensor]:
    for number in way:
        yield shrink(frames[[number]], max_side, min_side)[0]


def shrink(pictures: Tensor, max_side: int, min_side: int) -> Tensor:
    """Pictures (N, 3, H, W) with the longer side at most `max_side`, averaged over areas; never enlarged.

    Very wide ones stay larger: the metric needs `min_side` pixels on the shorter side.
    """
    height, width = pictures.shape[-2:]
    scale = max(max_side / max(height, width), min_side / min(height, width))
    if scale >= 1:
        return pictures
    return F.interpolate(pictures, size=(max(1, round(height * scale)), max(1, round(width * scale))), mode="area")
