"""Several adapters in one batch, each sample with its own weight for each of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import nn

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]


TEXT_ENCODER = "text_encoder"
"""How names of text encoders' layers begin, in adapters and their files; those of denoisers never do."""


def is_of_text(name: str) -> bool:
    """Whether a layer, or a factor of one, is a text encoder's: `text_encoder.` or `text_encoder_2.` and so on."""
    return name.startswith(TEXT_ENCODER)


@dataclass(frozen=True)
class Adapter:
    """A trained adapter. factors: module name to A (r, in) and B (out, r); it adds scale B A to that weight.

    Those of a convolution of one pixel are (r, in, 1, 1) and (out, r, 1, 1). The denoiser's modules have their own
    names, the text encoders' begin with their part.
    """

    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    scale: float

    @property
    def reads_text(self) -> bool:
        """Whether it changes how captions are read."""
        return any(map(is_of_text, self.factors))


def is_linear(module: nn.Module | None) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether adapters can have factors for it: a linear layer, or a convolution of one pixel, which is one."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def is_fusable(module: nn.Module | None) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether adapters can become part of its weight: also of larger convolutions, whose A has their kernel's size."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


WeightedAdapter = tuple[Adapter, float]
"""An adapter and its weight: 1 as it was trained, 0 not at all."""


def mixing_weights(samples: Sequence[Sequence[WeightedAdapter]]) -> tuple[list[Adapter], torch.Tensor]:
    """The adapters of B samples, each once, and their weights (adapters, B) float64 on the CPU.

    An adapter that a sample names twice has the sum of both weights there.
    """
    adapters = list({id(adapter): adapter for sample in samples for adapter, _ in sample}.values())
    rows = [[sum(weight for own, weight in sample if own is adapter) for sample in samples] for adapter in adapters]
    return adapters, torch.tensor(rows, dtype=torch.float64).view(len(adapters), len(samples))


@contextmanager
def mixed_adapters(denoiser: nn.Module, adapters: Sequence[Adapter], weights: torch.Tensor) -> Iterator[None]:
    """Let sample b of a batch see W + sum_i weights[i, b] scale_i B_i A_i, for as long as the context lasts.

    weights: (adapters, B), on any device, B the batch that the denoiser is called with. Only the products B A are
    weighted, never the factors: to interpolate those apart is wrong by -alpha (1 - alpha) (B_0 - B_1) (A_0 - A_1). All
    adapters of a layer share one pair of matrix products: their A lie above each other, their B beside each other, and
    what is weighted is the short vector in between. With no adapters nothing changes. Factors for text encoders have no
    say here, but in what those make of captions (`adapted_conditioning`).

    Raises:
        ValueError: when an adapter has factors for a module that is no linear layer of this denoiser.
    """
    with _mixed(denoiser, adapters, weights, text=False):
        yield


@contextmanager
def mixed_text_adapters(encoders: nn.Module, adapters: Sequence[Adapter], weights: torch.Tensor) -> Iterator[None]:
    """The same for a base's `text_encoders`, with the adapters' factors for those alone: caption b of a batch.

    Raises:
        ValueError: when an adapter has factors for a module that is no linear layer of these encoders.
    """
    with _mixed(encoders, adapters, weights, text=True):
        yield


@contextmanager
def _mixed(root: nn.Module, adapters: Sequence[Adapter], weights: torch.Tensor, text: bool) -> Iterator[None]:
    handles = []
    try:
        for name in sorted({name for one in adapters for name in one.factors if is_of_text(name) == text}):
            try:
                module = root.get_submodule(name)
            except AttributeError:
                module = None
            if not is_linear(module):
                raise ValueError(f"an adapter has factors for {name}, which is no linear layer of this base")
            having = [(number, adapter) for number, adapter in enumerate(adapters) if name in adapter.factors]
            down = torch.cat([adapter.factors[name][0] for _, adapter in having])
            up = torch.cat([adapter.factors[name][1] for _, adapter in having], dim=1)
            columns = torch.cat(
                [
                    (weights[number] * adapter.scale).to(down).expand(len(adapter.factors[name][0]), -1)
                    for number, adapter in having
                ]
            )
            if module.weight.dtype.itemsize == 2:
                down, up = down.to(module.weight.dtype), up.to(module.weight.dtype)
            handles.append(module.register_forward_hook(_hook(down, up, columns.T.contiguous())))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(down: torch.Tensor, up: torch.Tensor, columns: torch.Tensor) -> Hook:
    """down: (R, in), up: (out, R), columns: (B, R), the weight of each row of `down` in each sample."""
    if down.ndim == 4:

        def add_to_pixels(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            low = nn.functional.conv2d(inputs[0], down) * columns[:, :, None, None]
            return output + nn.functional.conv2d(low.to(up.dtype), up)

        return add_to_pixels

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        low = nn.functional.linear(inputs[0], down)
        low = low * columns.view(len(columns), *[1] * (low.ndim - 2), -1)  # in float32: neighbours' weights are close
        return torch.addmm(output.flatten(0, -2), low.flatten(0, -2).to(up.dtype), up.T).view(output.shape)

    return add
