"""Interpolation between two keyframes: of noise, its statistics, and pictures."""

from collections.abc import Sequence
from itertools import pairwise

import torch


def slerp(x0: torch.Tensor, x1: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation (Shoemake 1985) of two tensors (C, h, w) as vectors: (F, C, h, w) for alphas (F,).

    Between nearly parallel vectors, where the arc vanishes, it is the straight line.
    """
    a, b = x0.flatten().cpu().double(), x1.flatten().cpu().double()  # Apple's GPUs have no float64
    angle = torch.acos((torch.dot(a, b) / (a.norm() * b.norm())).clamp(-1, 1))
    steps = alphas.cpu().double()
    if not angle.sin() > 1e-6:  # also for a vector of zeros, whose angle is not a number
        w0, w1 = 1 - steps, steps
    else:
        w0, w1 = torch.sin((1 - steps) * angle) / angle.sin(), torch.sin(steps * angle) / angle.sin()
    w0, w1 = (weight.to(x0).view(-1, 1, 1, 1) for weight in (w0, w1))
    return w0 * x0 + w1 * x1


def lerp(c0: torch.Tensor, c1: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """Linear interpolation of two tensors (...): (F, ...) for alphas (F,)."""
    weights = alphas.to(c0).view(-1, *[1] * c0.ndim)
    return torch.lerp(c0.expand(len(alphas), *c0.shape), c1.expand(len(alphas), *c1.shape), weights)


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


def film_with_real_ends(
    frames: torch.Tensor,
    keyframes: torch.Tensor,
    stops: Sequence[int],
    alphas: Sequence[Sequence[float]],
    reach: float,
    loop: bool,
) -> torch.Tensor:
    """`with_real_ends` in every segment of a film (N, 3, H, W) with real keyframes (K, 3, H, W) at frames `stops`.

    alphas: by segment, both ends included. Of a loop, the last segment leads from the last frame to the first.
    """
    if reach == 0:
        return frames
    if loop:
        frames, keyframes, stops = (
            torch.cat([frames, frames[:1]]),
            torch.cat([keyframes, keyframes[:1]]),
            [*stops, len(frames)],
        )
    film = frames[:1]
    for (start, end), ends, between in zip(pairwise(stops), pairwise(keyframes), alphas, strict=True):
        segment = with_real_ends(frames[start : end + 1], torch.tensor(between), *ends, reach)
        film = torch.cat([film[:-1], segment])
    return film[:-1] if loop else film
