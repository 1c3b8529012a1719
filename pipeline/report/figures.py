"""The figures of a morph as a table to read: what each says in plain words, and which variant is best at it.

Imports nothing else of the project, so that a page which shows figures does not depend on code that measures.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

VARIANTS = ("morph", "without_adapters", "cross_fade")

Metrics = Mapping[str, Mapping[str, float | None]]
"""The figures by their names, of each variant by its name: reports/metrics/<morph>.json."""


@dataclass(frozen=True)
class Figure:
    """One figure. name: in the metrics. digits: after the point. says: what it means to someone who reads it here."""

    name: str
    label: str
    unit: str
    better: Literal["higher", "lower", ""]
    digits: int
    says: str


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
        "What is left of the prepared pictures when the base merely encodes and decodes them: endpoints cannot do much "
        "better.",
    ),
    Figure(
        "endpoints_worst_psnr_gap",
        "Worst endpoint",
        "dB below",
        "lower",
        2,
        "How far the worst endpoint falls below that.",
    ),
    Figure("endpoints_ssim", "Endpoints, SSIM", "", "higher", 3, "The same by structure: 1 is equal."),
    Figure(
        "endpoints_perceptual",
        "Endpoints, perceptual",
        "",
        "lower",
        3,
        "The same by perceptual distance: 0 is equal, 1 is black against white.",
    ),
    Figure(
        "naturalness",
        "Naturalness",
        "",
        "lower",
        2,
        "How badly the base denoises the frames between keyframes, over how badly it denoises the keyframes: 1 is as "
        "natural as those, a double exposure lies above. It does not see blur.",
    ),
    Figure(
        "ppl",
        "Way (PPL)",
        "",
        "lower",
        3,
        "Perceptual distance covered from one keyframe to the next: flicker and detours lengthen it.",
    ),
    Figure(
        "pdv",
        "Unevenness (PDV)",
        "",
        "lower",
        5,
        "Variance of the steps from frame to frame: 0 is a perfectly even pace.",
    ),
    Figure(
        "neighbours_max_over_mean",
        "Largest step",
        "× the mean",
        "lower",
        2,
        "A jump shows here: 1 is even.",
    ),
    Figure(
        "directness",
        "Way over straight way",
        "",
        "",
        2,
        "A cross-fade lies near 1, a motion above. No praise by itself.",
    ),
    Figure("lpips_ppl", "Way, LPIPS", "", "lower", 3, "PPL with the learned distance that papers use."),
    Figure("lpips_pdv", "Unevenness, LPIPS", "", "lower", 5, "PDV with the learned distance that papers use."),
)


@dataclass(frozen=True)
class Line:
    """A line of the table: a figure, one cell a variant in the order of VARIANTS, and the places of the best."""

    figure: Figure
    cells: tuple[str, ...]
    best: tuple[int, ...]


def table(metrics: Metrics) -> list[Line]:
    """A line for each figure that at least one variant has."""
    lines = [_line(figure, metrics) for figure in FIGURES]
    return [line for line in lines if any(cell != "–" for cell in line.cells)]


def _line(figure: Figure, metrics: Metrics) -> Line:
    values = [metrics[variant].get(figure.name) for variant in VARIANTS]
    cells = tuple(
        "–" if value is None or not math.isfinite(value) else f"{value:.{figure.digits}f}" for value in values
    )
    # What reads the same is equally good: the digits that are not shown decide nothing.
    shown = {place: float(cell) for place, cell in enumerate(cells) if cell != "–"}
    if not figure.better or len(shown) < 2 or len(set(shown.values())) == 1:
        return Line(figure, cells, ())
    top = (max if figure.better == "higher" else min)(shown.values())
    return Line(figure, cells, tuple(place for place, value in shown.items() if value == top))
