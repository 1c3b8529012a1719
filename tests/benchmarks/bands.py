"""How much fine detail pictures hold, by cycles across the picture: power, coherence, and change along a way.

The luminance less its mean, under a Hann window, in a two-dimensional Fourier transform; sums over rings of radius and
over pictures.
"""

import torch

RINGS = ((8, 16), (16, 32), (32, 64))
LUMINANCE = (0.299, 0.587, 0.114)


def spectra(pictures: torch.Tensor) -> torch.Tensor:
    """Windowed spectra of the luminance, (N, H, W) complex, of pictures (N, 3, H, W)."""
    height, width = pictures.shape[-2:]
    weights = torch.tensor(LUMINANCE, dtype=pictures.dtype).view(1, 3, 1, 1)
    luminance = (pictures * weights).sum(dim=1)
    luminance = luminance - luminance.mean(dim=(1, 2), keepdim=True)
    window = torch.hann_window(height, periodic=False)[:, None] * torch.hann_window(width, periodic=False)
    return torch.fft.fft2(luminance * window)


def powers(of: torch.Tensor) -> list[float]:
    """Power of spectra (N, H, W) in each ring."""
    return [float(of[:, inside].abs().square().sum()) for inside in _rings(of)]


def power_shares(made: torch.Tensor, true: torch.Tensor) -> list[float]:
    """Power of the one spectra over that of the others, in each ring."""
    return [one / other for one, other in zip(powers(made), powers(true), strict=True)]


def coherences(made: torch.Tensor, true: torch.Tensor) -> list[float]:
    """Real part of the summed cross power over the root of both powers, in each ring: 1 where structure is the same."""
    cross = [float((made[:, inside] * true[:, inside].conj()).real.sum()) for inside in _rings(made)]
    roots = [(one * other) ** 0.5 for one, other in zip(powers(made), powers(true), strict=True)]
    return [value / root for value, root in zip(cross, roots, strict=True)]


def change_shares(made: torch.Tensor, true: torch.Tensor) -> list[float]:
    """Power of the change between neighbours on ways (P, F, 3, H, W), over that on the true ways, in each ring."""
    changes = [spectra((way[:, 1:] - way[:, :-1]).flatten(0, 1)) for way in (made, true)]
    return power_shares(*changes)


def _rings(of: torch.Tensor) -> list[torch.Tensor]:
    height, width = of.shape[-2:]
    down, across = torch.fft.fftfreq(height) * height, torch.fft.fftfreq(width) * width
    radius = (down[:, None].square() + across.square()).sqrt()
    return [(radius >= low) & (radius < high) for low, high in RINGS]
