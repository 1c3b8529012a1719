"""Several adapters made one, and adapters made part of a base.

What is summed is the products B A. peft's `linear`, `ties` and `dare` merge the factors apart, and the product of two
sums is not the sum of two products.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.adapters.mixing import WeightedAdapter

Factors = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Combined:
    """The sum of weighted adapters as one, at scale 1.

    factors: module name to A (rank, in) and B (out, rank), float32. kept: the share of the sum's squared norm (over all
    modules) that is in it, 1 where it is exact.
    """

    factors: Mapping[str, Factors]
    rank: int
    kept: float


def combine(adapters: Sequence[WeightedAdapter], rank: int | None = None) -> Combined:
    """The sum of weighted adapters, with the sum of their ranks, or the nearest of `rank` if that is less.

    Nearest in the Frobenius norm, module by module: a truncated singular value decomposition (Eckart and Young 1936),
    of the small matrix between the factors' QR decompositions, so that no product is ever as large as the layer.
    """
    names = sorted({name for adapter, _ in adapters for name in adapter.factors})
    sums = {name: _stacked(adapters, name) for name in names}
    widest = max(len(down) for down, _ in sums.values())
    if rank is None or rank >= widest:
        return Combined({name: _padded(pair, widest) for name, pair in sums.items()}, widest, 1.0)
    factors, kept, total = {}, 0.0, 0.0
    for name, (down, up) in sums.items():
        left, upper = torch.linalg.qr(up)
        right, lower = torch.linalg.qr(down.T)
        first, values, last = torch.linalg.svd(upper @ lower.T, full_matrices=False)
        total += float(values.square().sum())
        values = values[:rank]
        kept += float(values.square().sum())
        halves = values.sqrt()
        pair = (halves[:, None] * (last[:rank] @ right.T), (left @ first[:, :rank]) * halves)
        factors[name] = _padded(pair, rank)
    return Combined(factors, rank, kept / total if total else 1.0)


@torch.no_grad()
def fuse(denoiser: nn.Module, adapters: Sequence[WeightedAdapter]) -> None:
    """Add weighted adapters to a denoiser's own weights, for good. The sum is taken in float64.

    Raises:
        ValueError: when an adapter has factors for a module that is no linear layer of this denoiser, or the sum is not
            finite in the denoiser's precision.
    """
    for name in sorted({name for adapter, _ in adapters for name in adapter.factors}):
        module = dict(denoiser.named_modules()).get(name)
        if not isinstance(module, nn.Linear):
            raise ValueError(f"an adapter has factors for {name}, which is no linear layer of this base")
        down, up = _stacked(adapters, name)
        weight = (module.weight.double() + (up @ down).to(module.weight.device)).to(module.weight.dtype)
        if not bool(weight.isfinite().all()):
            raise ValueError(f"{name}: the sum is not finite in {module.weight.dtype}")
        module.weight.copy_(weight)


def _stacked(adapters: Sequence[WeightedAdapter], name: str) -> Factors:
    """A's above each other and weighted B's beside each other, float64: their product is the sum of products."""
    having = [(adapter, weight) for adapter, weight in adapters if name in adapter.factors]
    down = torch.cat([adapter.factors[name][0].double() for adapter, _ in having])
    up = torch.cat([weight * adapter.scale * adapter.factors[name][1].double() for adapter, weight in having], dim=1)
    return down, up


def _padded(pair: Factors, rank: int) -> Factors:
    """Float32, with zeros up to the rank: a file has one rank for all its modules."""
    down, up = pair
    missing = rank - len(down)
    down = torch.nn.functional.pad(down, (0, 0, 0, missing))
    return down.float(), torch.nn.functional.pad(up, (0, missing)).float()
