"""Several adapters made one, and adapters made part of a base.

What is summed is the products B A. peft's `linear`, `ties` and `dare` merge the factors apart, and the product of two
sums is not the sum of two products.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pipeline.adapters.lora import layers_by_name
from pipeline.adapters.mixing import WeightedAdapter, is_fusable
from pipeline.base.protocol import Adaptable

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
        return Combined({name: _as_kept(pair, widest, adapters, name) for name, pair in sums.items()}, widest, 1.0)
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
        factors[name] = _as_kept(pair, rank, adapters, name)
    return Combined(factors, rank, kept / total if total else 1.0)


@torch.no_grad()
def fuse(base: Adaptable, adapters: Sequence[WeightedAdapter]) -> None:
    """Add weighted adapters to the weights of a base's denoiser and text encoders, for good, summed in float64.

    Raises:
        ValueError: when an adapter has factors for a module that is no linear layer of this base, or the sum is not
            finite in the layer's precision.
    """
    modules = layers_by_name(base)
    for name in sorted({name for adapter, _ in adapters for name in adapter.factors}):
        module = modules.get(name)
        own = [adapter.factors[name] for adapter, _ in adapters if name in adapter.factors]
        shapes = {(len(up), *down.shape[1:]) for down, up in own}
        if not is_fusable(module) or shapes != {tuple(module.weight.shape)}:
            raise ValueError(f"an adapter has factors for {name}, which is no linear layer of this base")
        down, up = _stacked(adapters, name)
        # On the CPU: an Apple GPU has no float64.
        added = (up.cpu() @ down.cpu()).view(module.weight.shape)
        weight = (module.weight.cpu().double() + added).to(module.weight.dtype)
        if not bool(weight.isfinite().all()):
            raise ValueError(f"{name}: the sum is not finite in {module.weight.dtype}")
        module.weight.copy_(weight)


def _stacked(adapters: Sequence[WeightedAdapter], name: str) -> Factors:
    """A's above each other and weighted B's beside each other, float64, (R, in) and (out, R).

    Their product is the sum of products.
    """
    having = [(adapter, weight) for adapter, weight in adapters if name in adapter.factors]
    pairs = [[factor.double().flatten(1) for factor in adapter.factors[name]] for adapter, _ in having]
    down = torch.cat([down for down, _ in pairs])
    scales = [weight * adapter.scale for adapter, weight in having]
    up = torch.cat([scale * up for scale, (_, up) in zip(scales, pairs, strict=True)], dim=1)
    return down, up


def _as_kept(pair: Factors, rank: int, adapters: Sequence[WeightedAdapter], name: str) -> Factors:
    """Float32, in the layer's own form, with zeros up to the rank: a file has one rank for all its modules."""
    down, up = pair
    missing = rank - len(down)
    down = torch.nn.functional.pad(down, (0, 0, 0, missing)).float()
    up = torch.nn.functional.pad(up, (0, missing)).float()
    pixel = next(adapter.factors[name][0].shape[2:] for adapter, _ in adapters if name in adapter.factors)
    return down.view(*down.shape, *pixel), up.view(*up.shape, *pixel)
