"""What a denoiser gets besides latents and time: a caption's embedding, and whatever its family adds to that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Control:
    """What a ControlNet adds to the denoiser's layers (Zhang et al. 2023, "Adding Conditional Control to Text-to-Image
    Diffusion Models").

    net: on the denoiser's device. picture: (B, 3, H, W) in [0, 1], such as edges, one for each sample. scale: of what
    it adds, 1 as it was trained.
    """

    net: nn.Module
    picture: torch.Tensor
    scale: float

    def take(self, rows: slice | Sequence[int] | torch.Tensor) -> "Control":
        """For some of the samples, in that order, repeated if named twice."""
        return Control(self.net, self.picture[rows], self.scale)


@dataclass(frozen=True)
class Conditioning:
    """Named tensors, each (B, ...) with one row a caption, such as `embedding` (B, L, D) and `pooled` (B, P).

    Only a base's family knows the names; everything else interpolates, stacks and stores all of them alike.
    """

    tensors: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        if len({len(tensor) for tensor in self.tensors.values()}) != 1:
            shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
            raise ValueError(f"conditioning needs the same number of captions in each tensor, found {shapes}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def take(self, rows: slice | Sequence[int] | torch.Tensor) -> "Conditioning":
        """Some of the captions, in that order, repeated if named twice."""
        return Conditioning({name: tensor[rows] for name, tensor in self.tensors.items()})

    def repeat(self, count: int) -> "Conditioning":
        """The one caption for `count` samples, without a copy. Raises ValueError when there are several."""
        if len(self) != 1:
            raise ValueError(f"one caption is repeated, found {len(self)}")
        return Conditioning({name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in self.tensors.items()})

    def beside(self, tensors: Mapping[str, torch.Tensor]) -> "Conditioning":
        """With more tensors, or others in the place of those of the same name."""
        return Conditioning({**self.tensors, **tensors})

    def to(self, target: torch.device | torch.dtype, non_blocking: bool = False) -> "Conditioning":
        """On a device, or in a precision."""
        return Conditioning({name: t.to(target, non_blocking=non_blocking) for name, t in self.tensors.items()})

    @staticmethod
    def stack(parts: Sequence["Conditioning"]) -> "Conditioning":
        """Captions of several bundles below each other, in order."""
        return Conditioning({name: torch.cat([part[name] for part in parts]) for name in parts[0].tensors})

    @staticmethod
    def lerp(first: "Conditioning", second: "Conditioning", alphas: torch.Tensor) -> "Conditioning":
        """F mixtures, for alphas (F,): the first at 0, the second at 1. Each is one caption, or F."""
        one, two = (part.repeat(len(alphas)) if len(part) == 1 else part for part in (first, second))
        weights = {name: alphas.to(t).view(-1, *[1] * (t.ndim - 1)) for name, t in one.tensors.items()}
        return Conditioning({name: torch.lerp(one[name], two[name], weights[name]) for name in one.tensors})
