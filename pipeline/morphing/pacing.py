"""Where the frames of a segment lie, so that neighbours look equally far apart."""

import functools
import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import torch

View = TypeVar("View")


def even_alphas(frames: int) -> torch.Tensor:
    """Evenly spaced alphas, both ends included, (frames,) float64."""
    return torch.linspace(0, 1, frames, dtype=torch.float64)


def paced_frames(
    make: Callable[[torch.Tensor], torch.Tensor],
    look: Callable[[Sequence[float], torch.Tensor], Sequence[View]],
    distance: Callable[[View, View], float],
    frames: int,
    spare: int,
    decide: Callable[[Callable[[], list[float]]], list[float]] = lambda choose: choose(),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Alphas (frames,) float64 from 0 to 1 at which neighbours look equally far apart, and the latents there.

    Half of the frames are made at even alphas, more by bisecting the widest gaps, until there are `spare` more than
    needed; then those are left out without which the widest gap is narrowest. All are made as they will be shown, so
    that a sudden change is where it was measured; in a coarse pass of fewer steps it is somewhere else.

    make: alphas (n,) to latents (n, ...). look: alphas and their latents to what `distance` compares. A distance that
    is no number counts as none. decide: calls what chooses alphas by their distances, in one of several processes.
    """
    latents, views, placed = dict[float, torch.Tensor](), dict[float, View](), list[float]()

    def add(alphas: list[float]) -> None:
        made = make(torch.tensor(alphas, dtype=torch.float64))
        latents.update(zip(alphas, made, strict=True))
        views.update(zip(alphas, look(alphas, made), strict=True))
        placed.extend(alphas)
        placed.sort()

    @functools.cache
    def between(a: float, b: float) -> float:
        found = distance(views[a], views[b])
        # Where nothing moves the spacing is even.
        return (found if math.isfinite(found) else 0.0) + 1e-6 * (b - a)

    def apart(i: int, j: int) -> float:
        return between(placed[i], placed[j])

    def more() -> list[float]:
        lacking = frames + spare - len(placed)
        chosen = narrowest(len(placed), min(frames, len(placed)), apart)
        # Only what would narrow the frames chosen so far counts: of each of their gaps, its widest part.
        widths = [0.0] * (len(placed) - 1)
        for i, j in pairwise(chosen):
            widths[max(range(i, j), key=lambda k: apart(k, k + 1))] = apart(i, j)
        # Half of what is lacking at a time, and no single ones, which take most of the time of two: few rounds, and the
        # later ones know more.
        return bisected(placed, widths, min(lacking, max(2, math.ceil(lacking / 2))))

    add(even_alphas(frames // 2 + 1).tolist())
    while len(placed) < frames + spare:
        add(decide(more))
    best = decide(lambda: [placed[place] for place in narrowest(len(placed), frames, apart)])
    return torch.tensor(best, dtype=torch.float64), torch.stack([latents[alpha] for alpha in best])


def bisected(alphas: Sequence[float], gaps: Sequence[float], count: int) -> list[float]:
    """`count` new alphas, each in the middle of what is then the widest gap; both halves are taken as half as wide.

    alphas: (n,) rising; gaps: (n - 1,) between neighbours. One shorter than 1e-6 in alpha is a jump, and not split.
    """
    queue = [(-gap if b - a > 1e-6 else 0.0, a, b) for gap, (a, b) in zip(gaps, pairwise(alphas), strict=True)]
    heapq.heapify(queue)
    new = []
    for _ in range(count):
        gap, a, b = heapq.heappop(queue)
        middle = (a + b) / 2
        new.append(middle)
        heapq.heappush(queue, (gap / 2, a, middle))
        heapq.heappush(queue, (gap / 2, middle, b))
    return sorted(new)


def narrowest(count: int, keep: int, distance: Callable[[int, int], float]) -> list[int]:
    """Which `keep` of `count` places in a row, both ends among them, have the narrowest widest gap.

    Of all choices as narrow, the one whose squared gaps have the smallest sum: the most even. O(count * left out^2).
    """
    spare = count - keep
    gaps = {(i, j): distance(i, j) for i in range(count) for j in range(i + 1, min(i + spare + 2, count))}
    widest, _ = _lightest(count, spare, gaps, max)
    allowed = {ends: gap * gap if gap <= widest else math.inf for ends, gap in gaps.items()}
    return _lightest(count, spare, allowed, lambda so_far, gap: so_far + gap)[1]


def _lightest(
    count: int, spare: int, gaps: Mapping[tuple[int, int], float], joined: Callable[[float, float], float]
) -> tuple[float, list[int]]:
    """The weight of the lightest way from the first place to the last that leaves `spare` out, and its places.

    By dynamic programming over (place, how many were left out before it). joined: the weight of a way and one more gap.
    """
    best: dict[tuple[int, int], tuple[float, int]] = {(0, 0): (0.0, 0)}
    for place in range(1, count):
        for left_out in range(min(spare, place - 1) + 1):
            befores = [place - 1 - skipped for skipped in range(left_out + 1)]
            ways = [
                (joined(best[before, left_out - (place - 1 - before)][0], gaps[before, place]), before)
                for before in befores
                if (before, left_out - (place - 1 - before)) in best
            ]
            if ways:
                best[place, left_out] = min(ways)
    places, left_out = [count - 1], spare
    while places[-1] > 0:
        before = best[places[-1], left_out][1]
        left_out -= places[-1] - before - 1
        places.append(before)
    return best[count - 1, spare][0], places[::-1]
