"""What trainings have seen so far: losses, gradient norms and losses at fixed noise, and what follows from them."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean

import torch

from pipeline.outputs import atomic_file
from pipeline.sections import TrainSection
from pipeline.training.checkpoints import TrainState
from pipeline.training.rates import learning_rate

VALIDATION = "validation/"


@dataclass(frozen=True)
class Curves:
    """A finished training. loss, grad_norm: (steps taken,) float64. validation: at which step, the loss at fixed noise
    of each example. ended: why it ended."""

    loss: torch.Tensor
    grad_norm: torch.Tensor
    validation: Mapping[int, torch.Tensor]
    ended: str

    @property
    def final_loss(self) -> float:
        """Mean over the last tenth: a single step's loss depends mostly on the times that it drew."""
        return float(self.loss[-max(1, len(self.loss) // 10) :].mean())


class History:
    """The curves of a pack in training, kept on the device until they are read.

    loss, grad_norm: (adapters, steps). validations: for each adapter, the losses of its examples by step.
    """

    def __init__(self, states: Sequence[TrainState], steps: int, device: torch.device) -> None:
        self.loss = torch.zeros(len(states), steps, device=device)
        self.grad_norm = torch.zeros(len(states), steps, device=device)
        self.validations = [_validations(state) for state in states]
        for row, state in enumerate(states):
            if state.step:
                self.loss[row, : state.step] = state.tensors["curve/loss"].to(self.loss)
                self.grad_norm[row, : state.step] = state.tensors["curve/grad_norm"].to(self.grad_norm)

    def is_validated(self, step: int) -> bool:
        """Whether the loss at fixed noise is known after so many steps."""
        return all(step in known for known in self.validations)

    def forget(self, row: int, step: int) -> None:
        """Undo what a step that was not finished has left of an adapter."""
        self.loss[row, step:], self.grad_norm[row, step:] = 0, 0

    def first_not_finite(self, step: int) -> tuple[int, int] | None:
        """(adapter, step) of the first loss or gradient norm before `step` that is NaN or infinite."""
        good = (self.loss[:, :step].isfinite() & self.grad_norm[:, :step].isfinite()).cpu()
        if bool(good.all()):
            return None
        row, at = min((~good).nonzero().tolist(), key=lambda found: found[1])
        return row, at

    def tensors(self, row: int, step: int) -> dict[str, torch.Tensor]:
        """One adapter's curves, for its checkpoint."""
        curves = {"curve/loss": self.loss[row, :step], "curve/grad_norm": self.grad_norm[row, :step]}
        curves |= {f"{VALIDATION}{at}": losses for at, losses in self.validations[row].items()}
        return {key: value.cpu().double().clone() for key, value in curves.items()}


def outline(state: TrainState) -> TrainState:
    """The step and the validations alone, which tell whether a training is at its end."""
    kept = {key: value for key, value in state.tensors.items() if key.startswith(VALIDATION)}
    return TrainState(state.step, kept)


def ended(state: TrainState, settings: TrainSection) -> str | None:
    """Why a training is at its end, or None when it is not."""
    if state.step >= settings.steps:
        return f"all {settings.steps} steps"
    validated = [float(losses.mean()) for losses in _validations(state).values()]
    if settings.target_loss is not None and validated and validated[-1] <= settings.target_loss:
        return f"the loss at fixed noise reached {settings.target_loss:g} at step {state.step}"
    patience = settings.patience
    if patience is not None and len(validated) > patience and min(validated[-patience:]) >= min(validated[:-patience]):
        return f"the loss at fixed noise had stopped falling by step {state.step}"
    return None


def curves_of(state: TrainState, settings: TrainSection) -> Curves:
    """The curves in a finished state."""
    reason = ended(state, settings) or "unfinished"
    return Curves(state.tensors["curve/loss"], state.tensors["curve/grad_norm"], _validations(state), reason)


def learned_little(curves: Curves) -> str | None:
    """A warning about a training whose loss at fixed noise did not fall, or None."""
    before, after = (float(curves.validation[step].mean()) for step in (min(curves.validation), max(curves.validation)))
    if isfinite(after) and after < 0.995 * before:
        return None
    return (
        f"the loss at fixed noise went from {before:.4g} to {after:.4g}: hardly anything was learned; "
        "try more train.steps or a higher train.learning_rate"
    )


def write_curves(path: Path, curves: Mapping[str, Curves], settings: TrainSection) -> None:
    """A CSV of one line a step: means over the adapters still in training, then each one's loss at that step, and its
    loss at fixed noise after as many steps; the last line has only that."""
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = list(curves)
        validated = [f"fixed-noise loss {name}" for name in names]
        writer.writerow(["step", "learning_rate", "loss", "grad_norm", *(f"loss {name}" for name in names), *validated])
        for step in range(1 + max(len(curve.loss) for curve in curves.values())):
            losses = [float(curve.loss[step]) if step < len(curve.loss) else None for curve in curves.values()]
            norms = [float(curve.grad_norm[step]) for curve in curves.values() if step < len(curve.loss)]
            present = [loss for loss in losses if loss is not None]
            fixed = [curve.validation.get(step) for curve in curves.values()]
            measured = [None if of_each is None else float(of_each.mean()) for of_each in fixed]
            means = [learning_rate(settings, step), fmean(present), fmean(norms)] if present else [None] * 3
            figures = [*means, *losses, *measured]
            writer.writerow([step, *("" if figure is None else f"{figure:.6g}" for figure in figures)])


def _validations(state: TrainState) -> dict[int, torch.Tensor]:
    """The validations in a state by step, in order."""
    steps = sorted(int(key.removeprefix(VALIDATION)) for key in state.tensors if key.startswith(VALIDATION))
    return {step: state.tensors[f"{VALIDATION}{step}"] for step in steps}
