"""LPIPS with AlexNet (Zhang et al. 2018, version 0.1): the learned distance that papers on morphing report.

Its weights do not ship with this repository. They come as one .safetensors file with the state dict of the reference
implementation's `lpips.LPIPS(net="alex")`; `COMMAND` makes it, once, on any machine with the network.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline.base.files import safetensors_problems
from pipeline.distances.checks import check_pictures
from pipeline.errors import Problem

SMALLEST_SIDE = 31  # px; below it nothing is left after AlexNet's two poolings

COMMAND = (
    'pip install lpips torchvision && python -c "import lpips; from safetensors.torch import save_file; '
    "save_file({k: v for k, v in lpips.LPIPS(net='alex').state_dict().items() if not k.startswith('lins')}, "
    "'lpips-alex.safetensors')\""
)


@dataclass(frozen=True)
class Layer:
    """A convolution of AlexNet: its name in the file, its weight's shape (out, in, side, side), stride and padding.

    pooled: whether a max pooling of 3x3 with stride 2 comes before it.
    """

    name: str
    shape: tuple[int, int, int, int]
    stride: int
    padding: int
    pooled: bool


# Krizhevsky 2014, as torchvision builds it.
LAYERS = (
    Layer("net.slice1.0", (64, 3, 11, 11), stride=4, padding=2, pooled=False),
    Layer("net.slice2.3", (192, 64, 5, 5), stride=1, padding=2, pooled=True),
    Layer("net.slice3.6", (384, 192, 3, 3), stride=1, padding=1, pooled=True),
    Layer("net.slice4.8", (256, 384, 3, 3), stride=1, padding=1, pooled=False),
    Layer("net.slice5.10", (256, 256, 3, 3), stride=1, padding=1, pooled=False),
)


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors that a file of weights must hold."""
    shapes: dict[str, tuple[int, ...]] = {"scaling_layer.shift": (1, 3, 1, 1), "scaling_layer.scale": (1, 3, 1, 1)}
    for number, layer in enumerate(LAYERS):
        shapes[f"{layer.name}.weight"] = layer.shape
        shapes[f"{layer.name}.bias"] = layer.shape[:1]
        shapes[f"lin{number}.model.1.weight"] = (1, layer.shape[0], 1, 1)
    return shapes


def find_lpips_problems(path: Path, digest: str | None) -> list[Problem]:
    """Why a file of weights cannot be used: damaged, other tensors, or not the pinned file."""
    if not path.is_file():
        fix = f"Write null, or make the file: {COMMAND}"
        return [Problem("params.yaml: evaluate.lpips", f"there is no file {str(path)!r}", fix)]
    if problems := safetensors_problems(path):
        return [replace(problem, fix=f"Only safetensors are read. Make the file: {COMMAND}") for problem in problems]
    with safe_open(path, framework="pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    for key, shape in expected_shapes().items():
        if shapes.get(key) != shape:
            found = f"{key} has shape {shapes[key]}" if key in shapes else f"{key} is missing"
            fix = f"Expected a state dict of LPIPS with AlexNet, {key} of shape {shape}. Make it: {COMMAND}"
            return [Problem(str(path), found, fix)]
    with path.open("rb") as stream:
        actual = f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
    if digest == actual:
        return []
    found = "the weights must be pinned" if digest is None else f"{path} has changed"
    return [
        Problem("params.yaml: evaluate.lpips_digest", found, f"If the file is right, write `lpips_digest: {actual}`.")
    ]


@dataclass(frozen=True)
class Lpips:
    """The network and its linear weights, float32, on a device."""

    tensors: Mapping[str, Tensor]

    @classmethod
    def read(cls, path: Path, device: torch.device) -> "Lpips":
        """The weights of a file without problems (`find_lpips_problems`)."""
        tensors = load_file(path)
        return cls({key: tensors[key].float().to(device) for key in expected_shapes()})

    @torch.no_grad()
    def features(self, pictures: Tensor) -> list[Tensor]:
        """Activations of each layer, (N, C, h, w), the channels of each place scaled to length 1.

        pictures: (N, 3, H, W) in [0, 1], at least 31 px on the shorter side. Raises ValueError for others.
        """
        check_pictures(pictures)
        height, width = pictures.shape[-2:]
        if min(height, width) < SMALLEST_SIDE:
            raise ValueError(f"pictures of {width}x{height} px: LPIPS needs {SMALLEST_SIDE} px on the shorter side")
        device = self.tensors["scaling_layer.shift"].device
        # The network was calibrated on pictures in [-1, 1]: left in [0, 1], every distance comes out too small.
        scaled = pictures.to(device).float() * 2 - 1
        x = (scaled - self.tensors["scaling_layer.shift"]) / self.tensors["scaling_layer.scale"]
        activations = []
        for layer in LAYERS:
            x = F.max_pool2d(x, kernel_size=3, stride=2) if layer.pooled else x
            weight, bias = self.tensors[f"{layer.name}.weight"], self.tensors[f"{layer.name}.bias"]
            x = F.conv2d(x, weight, bias, layer.stride, layer.padding).relu()
            activations.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return activations

    @torch.no_grad()
    def neighbour_distances(self, frames: Iterable[Tensor]) -> list[float]:
        """LPIPS between each frame and the next, N - 1: 0 for equal frames, higher is farther.

        d(x, y) = sum over layers l of mean over places of w_l . (f_l(x) - f_l(y))^2 (Zhang et al. 2018, eq. 1). It is
        squared, and so no metric: a path cut more finely is shorter. frames: as in `features`; each passes through the
        network once.
        """
        distances, previous = list[float](), list[Tensor]()
        for frame in frames:
            current = self.features(frame[None])
            if previous:
                pairs = enumerate(zip(previous, current, strict=True))
                distances.append(sum(self._layer_distance(layer, x, y) for layer, (x, y) in pairs))
            previous = current
        return distances

    def _layer_distance(self, number: int, x: Tensor, y: Tensor) -> float:
        weights = self.tensors[f"lin{number}.model.1.weight"]
        return float(((x - y).square() * weights).sum(1).mean())
