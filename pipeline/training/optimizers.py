"""The optimizer of one row of a pack, and loss scales for float16."""

from typing import Any

import torch
from torch import nn

from pipeline.sections import TrainSection
from pipeline.training.pack import AdapterPack


class RowOptimizer:
    """AdamW (Loshchilov and Hutter 2019) over one adapter's two rows, each with its own rate.

    LoRA+ (Hayou et al. 2024): B learns `b_rate` times as fast as A. The text encoders' part of a row, if there is one,
    has a rate of its own. The optimizer is an adapter's own, so that it can be stopped, skipped and resumed without
    touching its neighbours.
    """

    def __init__(self, pack: AdapterPack, place: int, settings: TrainSection) -> None:
        down, up = pack.text_from
        parts = {"down": slice(down), "up": slice(up)}
        self._ratios = {"down": 1.0, "up": settings.b_rate}
        if settings.text_rate is not None:
            parts |= {"text_down": slice(down, None), "text_up": slice(up, None)}
            ratio = settings.text_rate / settings.learning_rate
            self._ratios |= {"text_down": ratio, "text_up": ratio * settings.b_rate}
        self.rows: dict[str, nn.Parameter] = {}
        for name, part in parts.items():
            values, grads = (pack.down, pack.down_grad) if name.endswith("down") else (pack.up, pack.up_grad)
            self.rows[name] = nn.Parameter(values[place, part])
            self.rows[name].grad = grads[place, part]
        groups = [{"params": [row], "name": name} for name, row in self.rows.items()]
        kind = torch.optim.AdamW if settings.optimizer == "adamw" else _eight_bit()
        self.optimizer = kind(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def set_rate(self, rate: float) -> None:
        """The rate of the next step, for A of the denoiser."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self._ratios[group["name"]]

    def step(self) -> None:
        """One step from the rows' gradients, or none: where memory runs out in the midst, all is as before."""
        rows = list(self.rows.values())
        before = [(row.detach().clone(), _copied(self.optimizer.state[row])) for row in rows]
        try:
            self.optimizer.step()
        except RuntimeError:  # on CUDA torch.OutOfMemoryError
            for row, (values, state) in zip(rows, before, strict=True):
                row.detach().copy_(values)
                self.optimizer.state[row] = state
            raise


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}


def _eight_bit() -> type[torch.optim.AdamW]:
    from bitsandbytes.optim import AdamW8bit  # `check` has seen that it is there

    return AdamW8bit


class LossScales:
    """A factor on each adapter's loss, so that small gradients survive float16 (Micikevicius et al. 2018).

    One for each adapter: a neighbour's overflow costs it no step. Halved after an overflow, doubled after 2,000 steps
    without one. Where it is not needed the factor is one and every gradient is used as it is.
    """

    GROW_AFTER = 2000

    def __init__(self, count: int, enabled: bool, device: torch.device) -> None:
        self.enabled = enabled
        self.scales = torch.full((count,), 2.0**16 if enabled else 1.0, device=device)
        self.good = torch.zeros(count, device=device)
        self._before = self.scales, self.good

    def begin(self) -> torch.Tensor:
        """What the losses (N,) of a step are multiplied by, before gradients are taken."""
        if self.enabled:
            self._before = self.scales.clone(), self.good.clone()
        return self.scales

    def unscale(self, pack: AdapterPack) -> list[bool]:
        """Bring gradients back to size; whose are finite."""
        if not self.enabled:
            return [True] * len(pack)
        pack.down_grad /= self.scales[:, None]
        pack.up_grad /= self.scales[:, None]
        finite = pack.down_grad.isfinite().all(1) & pack.up_grad.isfinite().all(1)
        for grads in (pack.down_grad, pack.up_grad):
            grads[~finite] = 0
        self.good = torch.where(finite, self.good + 1, 0)
        grown = self.good >= self.GROW_AFTER
        self.scales = torch.where(finite, torch.where(grown, self.scales * 2, self.scales), self.scales / 2)
        self.good[grown] = 0
        return finite.tolist()

    def undo(self, place: int) -> None:
        """An adapter's scale as it was before the step under way."""
        self.scales[place], self.good[place] = (values[place] for values in self._before)


def adapter_state(
    pack: AdapterPack, optimizer: RowOptimizer, scales: LossScales, place: int
) -> dict[str, torch.Tensor]:
    """All that one adapter's training needs to go on, but for its curves: CPU tensors by name."""
    tensors = {"weight/down": pack.down[place], "weight/up": pack.up[place]}
    for name, row in optimizer.rows.items():
        # Empty while every step so far overflowed.
        for key, value in optimizer.optimizer.state[row].items():
            tensors[f"optimizer/{name}/{key}"] = torch.as_tensor(value)
    if scales.enabled:
        tensors |= {"scale/factor": scales.scales[place], "scale/good": scales.good[place]}
    return {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}


def load_adapter_state(
    pack: AdapterPack, optimizer: RowOptimizer, scales: LossScales, place: int, tensors: dict[str, torch.Tensor]
) -> None:
    """Put what `adapter_state` gave back in its place."""
    pack.down[place] = tensors["weight/down"].to(pack.down)
    pack.up[place] = tensors["weight/up"].to(pack.up)
    for name, row in optimizer.rows.items():
        prefix = f"optimizer/{name}/"
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if state:
            # torch keeps the count of steps on the CPU.
            optimizer.optimizer.state[row] = {
                key: value.clone() if value.ndim == 0 else value.clone().to(row.device) for key, value in state.items()
            }
    if scales.enabled:
        scales.scales[place], scales.good[place] = tensors["scale/factor"], tensors["scale/good"]
