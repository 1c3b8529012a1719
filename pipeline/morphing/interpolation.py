"""Interpolation between two keyframes: of noise, its statistics, and pictures."""

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
