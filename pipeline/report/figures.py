"""The figures of a morph as a table to read: what each means in plain words, and which variant is best at it.

Imports none of the code that measures, so that a new metric makes no page stale that does not show it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.frames.variants import MORPH, VARIANTS
from pipeline.inputs import read_json
from pipeline.outputs import reading

Metrics = Mapping[str, Mapping[str, float | None]]
"""The figures by their names, of each variant by its name: reports/metrics/<morph>.json."""


@dataclass(frozen=True)
class Figure:
    """One figure. name: in the metrics. digits: after the point. meaning: for a reader who sees it the first time."""

    name: str
    label: str
    unit: str
    better: Literal["higher", "lower", ""]
    digits: int
    meaning: str


FIGURES = (
    Figure(
        "endpoints_psnr",
        "Endpoints, PSNR",
        "dB",
        "higher",
        1,
        "How near the frames at the keyframes, generated and never pasted in, come to the prepared pictures.",
    ),
    Figure(
        "endpoints_floor_psnr",
        "Autoencoder alone",
        "dB",
        "",
        1,
        "The prepared pictures, only encoded and decoded by the base: endpoints can hardly come nearer.",
    ),
    Figure(
        "endpoints_worst_psnr_gap",
        "Worst endpoint",
        "dB below",
        "lower",
        2,
        "How far the worst endpoint lies below the autoencoder alone.",
    ),
    Figure("endpoints_ssim", "Endpoints, SSIM", "", "higher", 3, "Nearness by structure: 1 is equal."),
    Figure(
        "endpoints_perceptual",
        "Endpoints, perceptual",
        "",
        "lower",
        3,
        "Nearness by perceptual distance: 0 is equal, 1 is black against white.",
    ),
    Figure(
        "naturalness",
        "Naturalness",
        "",
        "lower",
        2,
        "The base's denoising error on frames between keyframes, over its error on the keyframes: 1 is as natural as "
        "those, a double exposure lies above. It does not notice blur.",
    ),
    Figure(
        "ppl",
        "Path length (PPL)",
        "",
        "lower",
        3,
        "Perceptual distance covered from one keyframe to the next: flicker and detours make it longer.",
    ),
    Figure(
        "pdv",
        "Step variance (PDV)",
        "",
        "lower",
        5,
        "Variance of the distances from frame to frame: 0 is a perfectly even pace.",
    ),
    Figure(
        "neighbours_max_over_mean",
        "Largest step",
        "× the mean",
        "lower",
        2,
        "Shows a jump: 1 is an even pace.",
    ),
    Figure(
        "directness",
        "Path over straight line",
        "",
        "",
        2,
        "Near 1 for a cross-fade, higher for motion: neither is better by itself.",
    ),
    Figure("lpips_ppl", "Path length, LPIPS", "", "lower", 3, "PPL with the learned distance that papers use."),
    Figure("lpips_pdv", "Step variance, LPIPS", "", "lower", 5, "PDV with the learned distance that papers use."),
)


# Name in the summary, name in the metrics, digits.
SUMMARY = (
    ("endpoint_psnr", "endpoints_psnr", 3),
    ("endpoint_gap", "endpoints_worst_psnr_gap", 3),
    ("naturalness", "naturalness", 4),
    ("path_length", "neighbours_sum", 4),
    ("max_over_mean", "neighbours_max_over_mean", 4),
)


@dataclass(frozen=True)
class Row:
    """A row of the table: a figure, one cell for each variant that was made, and which cells are the best."""

    figure: Figure
    cells: tuple[str, ...]
    best: tuple[int, ...]


def read_metrics(path: Path) -> Metrics:
    """The figures in a file that the stage `evaluate` wrote.

    Raises:
        UserError: when it is damaged.
    """
    with reading(path):
        metrics = read_json(path)
        for figures in metrics.values():
            if not all(value is None or isinstance(value, int | float) for value in figures.values()):
                raise TypeError("a figure that is no number")
        summary(metrics)
        return metrics


def table(metrics: Metrics) -> list[Row]:
    """A row for each figure that at least one variant has."""
    rows = [_row(figure, metrics) for figure in FIGURES]
    return [row for row in rows if any(cell != "–" for cell in row.cells)]


def summary(metrics: Metrics) -> dict[str, float | None]:
    """The few figures of a morph that `dvc metrics diff` compares."""
    values = {short: (metrics[MORPH.name][name], digits) for short, name, digits in SUMMARY}
    return {short: None if value is None else round(value, digits) for short, (value, digits) in values.items()}


def _row(figure: Figure, metrics: Metrics) -> Row:
    values = [metrics[variant.name].get(figure.name) for variant in VARIANTS if variant.name in metrics]
    cells = tuple(
        "–" if value is None or not math.isfinite(value) else f"{value:.{figure.digits}f}" for value in values
    )
    # Cells that read the same are equally good: digits that are not displayed decide nothing.
    displayed = {column: float(cell) for column, cell in enumerate(cells) if cell != "–"}
    if not figure.better or len(displayed) < 2 or len(set(displayed.values())) == 1:
        return Row(figure, cells, ())
    best = (max if figure.better == "higher" else min)(displayed.values())
    return Row(figure, cells, tuple(column for column, value in displayed.items() if value == best))
