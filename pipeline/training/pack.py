"""Several adapters over one frozen base, side by side: in one batch each sample passes through its own alone.

All factors of all layers lie in two matrices, one row an adapter: clipping, checkpoints, the sum over processes and
the optimizer see a few long rows instead of thousands of small tensors, and an adapter's row does not depend on the
company it was trained in.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.adapters.lora import PRESETS, TEXT_ATTENTION
from pipeline.adapters.mixing import Hook
from pipeline.base.protocol import Adaptable
from pipeline.errors import Problem, UserError
from pipeline.sections import TrainSection


@dataclass(frozen=True)
class Layer:
    """A linear layer that gets factors, and where they stand in a row: `down` is A (r, in), `up` is B (out, r)."""

    name: str
    module: nn.Linear
    down: slice
    up: slice


class AdapterPack:
    """The factors of N adapters: W x + scale B A x (Hu et al. 2021, eq. 3), with each sample's own A and B.

    down, up: (N, P) and (N, Q), the rows; down_grad, up_grad: their gradients, which add up until `zero_grad`.
    seeds: one for each adapter; its start depends on nothing else.

    In memory there are these four matrices and nothing else; all the rest are views of them:

                    layer 1      layer 2                    layer 1       layer 2
        down   0 [ A (r x in) | A (r x in) | ... ]   up 0 [ B (out x r) | B (out x r) | ... ]   adapter 0
               1 [ A          | A          | ... ]      1 [ B           | B           | ... ]   adapter 1
                   ^^^^^^^^^^
                    a column of blocks: layer 1's A (N, r, in), the parameter that the denoiser is called with; its
                    .grad is the same column of down_grad, so that backward() adds straight into the rows

    The denoiser's layers come first, then, where they learn, the text encoders': in a row up to `text_from` and after.

    A row is one adapter: the parameter of its own optimizer (RowOptimizer), whose .grad is its row of down_grad; also
    what is clipped, saved and summed over processes.
    """

    def __init__(self, base: Adaptable, seeds: Sequence[int], settings: TrainSection) -> None:
        self.rank = settings.rank
        self.scale = settings.alpha / (math.sqrt(settings.rank) if settings.rank_stabilised else settings.rank)
        self.layers = layers_of(base.denoiser, settings.targets, settings.rank)
        self.text_from = self.layers[-1].down.stop, self.layers[-1].up.stop
        if settings.text_rate is not None:
            self.layers += text_layers_of(base.text_encoders, settings.rank, self.layers[-1])
        first = self.layers[0].module.weight
        # In a lower precision than float32 most updates would round away.
        dtype = torch.promote_types(first.dtype, torch.float32)
        self.down = torch.zeros(len(seeds), self.layers[-1].down.stop, device=first.device, dtype=dtype)
        self.up = torch.zeros(len(seeds), self.layers[-1].up.stop, device=first.device, dtype=dtype)
        for row, seed in zip(self.down, seeds, strict=True):
            self._start(row, seed, settings.init)
        self.down_grad, self.up_grad = torch.zeros_like(self.down), torch.zeros_like(self.up)
        self._factors = [self._views(layer) for layer in self.layers]
        self._bypassed = False

    def _start(self, row: torch.Tensor, seed: int, init: str) -> None:
        """A random, B zero, so that an adapter starts as no change; drawn on the CPU, the same for every device."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            shape = (self.rank, layer.module.in_features)
            if init == "gaussian":
                start = torch.randn(shape, generator=generator) / self.rank
            else:  # what nn.Linear starts from (He et al. 2015, with a = sqrt 5)
                start = (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(layer.module.in_features)
            row[layer.down] = start.flatten().to(row)

    def _views(self, layer: Layer) -> tuple[nn.Parameter, nn.Parameter]:
        """A (N, r, in) and B (N, out, r): views of the rows whose gradients are views of the gradients' rows."""
        count, module = len(self.down), layer.module
        views = []
        for rows, grads, part, shape in (
            (self.down, self.down_grad, layer.down, (self.rank, module.in_features)),
            (self.up, self.up_grad, layer.up, (module.out_features, self.rank)),
        ):
            parameter = nn.Parameter(rows[:, part].view(count, *shape))
            parameter.grad = grads[:, part].view(count, *shape)
            views.append(parameter)
        return views[0], views[1]

    def __len__(self) -> int:
        return len(self.down)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While it lasts, the denoiser takes batches of N equal parts, one for each adapter, in their order; and so do
        the text encoders, where they learn."""
        handles = [
            layer.module.register_forward_hook(self._hook(*factors))
            for layer, factors in zip(self.layers, self._factors, strict=True)
        ]
        try:
            with warnings.catch_warnings():
                # Rows of one long matrix are what everything else here wants; it costs nothing to speak of.
                warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
                yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """While it lasts, what the adapters are attached to works as if they were not."""
        self._bypassed = True
        try:
            yield
        finally:
            self._bypassed = False

    def _hook(self, down: nn.Parameter, up: nn.Parameter) -> Hook:
        def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if self._bypassed:
                return output
            rows = inputs[0].reshape(len(down), -1, inputs[0].shape[-1])
            low = torch.bmm(rows, down.to(rows.dtype).transpose(1, 2))
            base = output.view(len(up), -1, output.shape[-1])
            return torch.baddbmm(base, low, up.to(base.dtype).transpose(1, 2), alpha=self.scale).view(output.shape)

        return add

    def zero_grad(self) -> None:
        """Forget the gradients; they stay the rows that the factors add into."""
        self.down_grad.zero_()
        self.up_grad.zero_()

    def grad_norms(self) -> torch.Tensor:
        """Norm of each adapter's whole gradient, (N,)."""
        return (self.down_grad.square().sum(1) + self.up_grad.square().sum(1)).sqrt()

    def clip(self, max_norm: float) -> torch.Tensor:
        """Scale each adapter's gradient down to `max_norm` where it is longer; the norms before, (N,)."""
        norms = self.grad_norms()
        factors = (max_norm / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp(max=1)
        self.down_grad *= factors[:, None]
        self.up_grad *= factors[:, None]
        return norms

    def tensors(self, place: int) -> dict[str, torch.Tensor]:
        """Adapter number `place` as peft names it: `<module>.lora_A.weight` (r, in), `<module>.lora_B.weight`."""
        return {
            f"{layer.name}.lora_{letter}.weight": factor[place].detach().clone()
            for layer, factors in zip(self.layers, self._factors, strict=True)
            for letter, factor in zip("AB", factors, strict=True)
        }


def layers_of(denoiser: nn.Module, targets: str | Sequence[str], rank: int) -> list[Layer]:
    """The layers of a preset, or those whose names end in one of `targets`, in the denoiser's order.

    Raises:
        UserError: when a name fits no layer, or one that is not linear.
    """
    names = PRESETS[targets] if isinstance(targets, str) else tuple(targets)
    found: list[Layer] = []
    unused = set(names)
    for name, module in denoiser.named_modules():
        fitting = [target for target in names if name == target or name.endswith(f".{target}")]
        if not fitting:
            continue
        if not isinstance(module, nn.Linear):
            fix = "Name linear layers, or take a preset: " + ", ".join(PRESETS) + "."
            raise UserError(Problem("params.yaml: train.targets", f"{name} is a {type(module).__name__}", fix))
        unused -= set(fitting)
        found.append(_layer_after(found[-1] if found else None, name, module, rank))
    if unused:
        fix = "Name ends of module names of this base's denoiser, or take a preset: " + ", ".join(PRESETS) + "."
        raise UserError(Problem("params.yaml: train.targets", f"no layer is called {', '.join(sorted(unused))}", fix))
    return found


def text_layers_of(encoders: nn.Module, rank: int, last: Layer) -> list[Layer]:
    """The attention layers of a base's `text_encoders`, in a row behind `last`."""
    found = [last]
    for name, module in encoders.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in TEXT_ATTENTION:
            found.append(_layer_after(found[-1], name, module, rank))
    return found[1:]


def _layer_after(last: Layer | None, name: str, module: nn.Linear, rank: int) -> Layer:
    down, up = (last.down.stop, last.up.stop) if last else (0, 0)
    widths = rank * module.in_features, rank * module.out_features
    return Layer(name, module, slice(down, down + widths[0]), slice(up, up + widths[1]))
