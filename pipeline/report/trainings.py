"""The trainings of a set, from its curves: the losses of each adapter, and why it stopped."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.outputs import reading
from pipeline.report.plots import Training
from pipeline.sections import TrainSection


@dataclass(frozen=True)
class AdapterRow:
    """An adapter in the table of a set. first_validation, last_validation: its loss at fixed noise before and after;
    None where it was not taken."""

    name: str
    steps: int
    first_validation: float | None
    last_validation: float | None
    stopped: str


def read_trainings(path: Path) -> tuple[dict[str, Training], list[float]]:
    """Each adapter's training from a set's curves, and the learning rate at each step of the longest.

    Raises:
        UserError: when the file is missing or damaged.
    """
    with reading(path):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = [column.removeprefix("loss ") for column in rows[0] if column.startswith("loss ")]
        trainings = {
            name: Training(
                losses=[_finite(row[f"loss {name}"]) for row in rows if row[f"loss {name}"]],
                validation={
                    int(row["step"]): _finite(row[f"fixed-noise loss {name}"])
                    for row in rows
                    if row[f"fixed-noise loss {name}"]
                },
            )
            for name in names
        }
        if not names or not all(training.losses for training in trainings.values()):
            raise ValueError("it has no losses")
        return trainings, [_finite(row["learning_rate"]) for row in rows if row["learning_rate"]]


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no loss or rate")
    return value


def adapter_row(name: str, training: Training, settings: TrainSection) -> AdapterRow:
    """How the training of an adapter went, and why it stopped."""
    validation = list(training.validation.values())
    steps = len(training.losses)
    return AdapterRow(
        name=name,
        steps=steps,
        first_validation=validation[0] if validation else None,
        last_validation=validation[-1] if validation else None,
        stopped=stop_reason(steps, validation, settings),
    )


def stop_reason(steps: int, validation: Sequence[float], settings: TrainSection) -> str:
    """Why a training stopped after so many steps. validation: its losses at fixed noise, in order, as in the curves."""
    if steps >= settings.steps:
        return "all steps done"
    # The curves have six digits.
    if settings.target_loss is not None and validation and validation[-1] <= settings.target_loss * (1 + 1e-5):
        return f"loss at fixed noise reached {settings.target_loss:g}"
    return f"no lower loss at fixed noise {settings.patience} times in a row"
