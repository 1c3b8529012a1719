"""The embedded feature extractor: a model of simple and complex cells of early vision, without learned weights.

Four steps, each from the literature on early vision, at every octave of a pyramid:

1. colour: CIELAB, where equal steps look about equally large (CIE 15:2004);
2. oriented contrast: the response of Gabor filters, squared to an energy (Adelson and Bergen 1985);
3. the mean energy of a neighbourhood, so that neither phase nor a small shift counts for much; the neighbourhood is
   wider than the filter's wave, and so the filter needs no partner a quarter of a wave aside;
4. division by the contrast of the neighbourhood, so that a strong edge masks a weak change (Heeger 1992).

Beside them stands the neighbourhood's mean colour. The distance has the shape of LPIPS (Zhang et al. 2018, eq. 1): the
difference of normalised features, its length taken over channels, its mean over places and octaves. Lengths are not
squared, so the distance is a metric on features: it grows in proportion to a small change, it obeys the triangle
inequality, a path is never shorter than the distance of its ends, and twice as many frames do not halve the path.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.distances.checks import check_pictures

SMALLEST_SIDE = 16  # px; below it no octave has a neighbourhood of its own
SMALLEST_OCTAVE = 8  # px on the shorter side of the pyramid's last level

ORIENTATIONS = 4
WAVELENGTH = 4.0  # px: as fine as a filter of 1.5 octaves can be without meeting the pixel grid
ENVELOPE = 1.6  # px: 0.4 wavelengths give those 1.5 octaves
RADIUS = 4  # px: 2.5 envelopes
HALF_CONTRAST = 0.05  # contrast (CIELAB / 100) at which a cell gives half of its greatest response
CHROMA_WEIGHT = 0.5  # CIE 116:1995 divides differences of chroma by 1 + 0.045 C: about 2 for usual colours


@dataclass(frozen=True)
class Features:
    """Features of N pictures of one size.

    octaves: for octave k a tensor (N, 9, ceil(H / 2^(k+2)), ceil(W / 2^(k+2))) float32. Channels: four orientations of
    lightness contrast (0 to 1), contrast of a* and of b* (0 to 1), mean L* (in hundreds), mean a* and b* (in two
    hundreds).
    """

    octaves: tuple[Tensor, ...]

    def __len__(self) -> int:
        return self.octaves[0].shape[0]

    def __getitem__(self, pictures: slice) -> "Features":
        return Features(tuple(octave[pictures] for octave in self.octaves))


@torch.no_grad()
def extract(pictures: Tensor) -> Features:
    """Features of each picture, on the pictures' device.

    pictures: (N, 3, H, W) in [0, 1], sRGB. Raises ValueError for other shapes and values, naming the picture, and for a
    side under 16 px.
    """
    check_pictures(pictures)
    height, width = pictures.shape[-2:]
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(f"pictures of {width}x{height} px: features need {SMALLEST_SIDE} px on the shorter side")
    if len(pictures) == 0:
        raise ValueError("no pictures to extract features from")
    # One picture at a time: its figures cannot depend on its neighbours in the batch, memory stays small, and on a CPU
    # the working set stays in the cache. A reduced precision that the caller set for a model must not change them.
    with torch.autocast(pictures.device.type, enabled=False), _full_float32():
        each = [tuple(_octaves(_opponent(picture[None].float()))) for picture in pictures]
    return Features(tuple(torch.cat(octave) for octave in zip(*each, strict=True)))


@contextmanager
def _full_float32() -> Iterator[None]:
    """Without TF32, which rounds factors to 10 bits."""
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matrices.allow_tf32, convolutions.allow_tf32
    matrices.allow_tf32 = convolutions.allow_tf32 = False
    try:
        yield
    finally:
        matrices.allow_tf32, convolutions.allow_tf32 = before


def feature_distance(first: Features, second: Features) -> Tensor:
    """Perceptual distance of each pair, (N,) float32: 0 for equal pictures, 1 between black and white.

    d(x, y) = mean over octaves k and places p of || f_k,p(x) - f_k,p(y) ||, after Zhang et al. 2018, eq. 1, not
    squared. One picture on either side is compared with all on the other. Raises ValueError if the sizes of the
    pictures differ.
    """
    shapes = [[octave.shape[1:] for octave in features.octaves] for features in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError("features of pictures of one size are compared: found two sizes")
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise ValueError(f"features are compared in pairs: found {len(first)} and {len(second)} pictures")
    pairs = zip(first.octaves, second.octaves, strict=True)
    return torch.stack([(x - y).square().sum(1).sqrt().mean((1, 2)) for x, y in pairs]).mean(0)


def lab(pictures: Tensor) -> Tensor:
    """CIELAB of sRGB pictures: (N, 3, H, W) in [0, 1] to L* 0 to 100, a* and b* about -100 to 100.

    IEC 61966-2-1 for the transfer function and the primaries, CIE 15:2004 for L*a*b*, white D65 at 2 degrees.
    """
    pictures = pictures.clamp(0, 1)
    linear = torch.where(pictures > 0.04045, ((pictures + 0.055) / 1.055) ** 2.4, pictures / 12.92)
    xyz = torch.einsum("ij,njhw->nihw", _to_xyz(pictures.device), linear)
    # The straight piece near black keeps the slope finite: a bare cube root would make dark noise look like an edge.
    response = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-6) ** (1 / 3), xyz * (841 / 108) + 4 / 29)
    x, y, z = response.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def _opponent(picture: Tensor) -> Tensor:
    return lab(picture) * torch.tensor([1, CHROMA_WEIGHT, CHROMA_WEIGHT], device=picture.device).view(3, 1, 1) / 100


def _octaves(picture: Tensor) -> Iterator[Tensor]:
    """Features of one picture (1, 3, H, W), weighted CIELAB, from the finest octave to the coarsest."""
    while min(picture.shape[-2:]) >= SMALLEST_OCTAVE:
        energy = _energy(picture)
        lightness, chroma = energy[0], energy[1:].sum(1)  # where colour changes matters more than along which direction
        pooled = _halve(_halve(torch.cat([lightness, chroma, picture[0]])[None]))
        # Some convolution algorithms return a little under 0 for 0, whose root would be NaN.
        energy, mean = pooled[:, :-3].clamp(min=0), pooled[:, -3:]
        around = energy.sum(1, keepdim=True).sqrt()
        yield torch.cat([energy.sqrt() / (HALF_CONTRAST + around), mean], 1)
        picture = _halve(picture)


def _energy(picture: Tensor) -> Tensor:
    """Gabor energy of each channel: (1, 3, h, w) to (3, ORIENTATIONS, h, w)."""
    planes = F.pad(picture.transpose(0, 1), (RADIUS,) * 4, mode="reflect")
    return torch.cat([F.conv2d(plane[None], _gabors(picture.device)) for plane in planes]).square()


def _halve(maps: Tensor) -> Tensor:
    """Burt and Adelson's (1983) REDUCE, with reflected edges: (N, C, h, w) to (N, C, ceil(h / 2), ceil(w / 2)).

    Seven taps for their five let through half as much fine texture as false coarse texture, which any shift changes.
    """
    channels = maps.shape[1]
    kernel = _binomial(maps.device).expand(channels, 1, 7, 7)
    return F.conv2d(F.pad(maps, (3,) * 4, mode="reflect"), kernel, stride=2, groups=channels)


@lru_cache
def _gabors(device: torch.device) -> Tensor:
    """(ORIENTATIONS, 1, side, side): even filters with no response to a flat picture.

    Scaled so that a grating of the filter's own wavelength and of amplitude 1 has a mean energy of 1.
    """
    side = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    y, x = torch.meshgrid(side, side, indexing="ij")
    envelope = torch.exp(-(x**2 + y**2) / (2 * ENVELOPE**2))
    filters = []
    for step in range(ORIENTATIONS):
        angle = math.pi * step / ORIENTATIONS
        phase = 2 * math.pi / WAVELENGTH * (x * math.cos(angle) + y * math.sin(angle))
        even = envelope * (phase.cos() - (envelope * phase.cos()).sum() / envelope.sum())
        filters.append(math.sqrt(2) * even / (even * phase.cos()).sum())
    return torch.stack(filters)[:, None].float().to(device)


@lru_cache
def _binomial(device: torch.device) -> Tensor:
    row = torch.tensor([1, 6, 15, 20, 15, 6, 1], dtype=torch.float32) / 64
    return torch.outer(row, row).to(device)


@lru_cache
def _to_xyz(device: torch.device) -> Tensor:
    """sRGB primaries to XYZ, each row divided by the white point's value."""
    primaries = torch.tensor(
        [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]],
        dtype=torch.float64,
    )
    white = torch.tensor([0.95047, 1.0, 1.08883], dtype=torch.float64)
    return (primaries / white[:, None]).float().to(device)
