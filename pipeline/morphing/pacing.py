"""Where the frames of a segment lie, so that neighbours look equally far apart."""

import torch


def even_alphas(frames: int) -> torch.Tensor:
    """Evenly spaced alphas, both ends included, (frames,) float64."""
    return torch.linspace(0, 1, frames, dtype=torch.float64)


def repaced_alphas(alphas: torch.Tensor, distances: torch.Tensor, frames: int) -> torch.Tensor:
    """Alphas (frames,) at which the way measured so far is equally long between neighbours.

    alphas: (n,) rising from 0 to 1, where it was measured; distances: (n - 1,) between neighbours there. Between the
    measured points the way is taken as straight (DiffMorpher, Zhang et al. 2024, section 4.4, does the same with a
    full second pass). Where nothing moves, or a distance is no number, the spacing stays even.
    """
    steps = torch.where(distances.isfinite(), distances, 0).double().clamp_min(0)
    if not distances.isfinite().all() or float(steps.sum()) == 0:
        return even_alphas(frames)
    # A stretch without any change still takes its turn, or the positions on it would have no order.
    steps = steps + 1e-6 * steps.sum()
    way = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])
    wanted = even_alphas(frames) * way[-1]
    after = torch.searchsorted(way, wanted, right=True).clamp(1, len(way) - 1)
    share = (wanted - way[after - 1]) / (way[after] - way[after - 1])
    found = torch.lerp(alphas.double()[after - 1], alphas.double()[after], share.clamp(0, 1))
    found[0], found[-1] = 0, 1
    return found
