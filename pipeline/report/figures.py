"""The figures of a morph as a table to read: what each means in plain words, and which variant is best at it.

Imports none of the code that measures, so that a new metric makes no page stale that does not show it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.frames.variants import CROSS_FADE, MORPH, VARIANTS
from pipeline.inputs import read_json
from pipeline.outputs import reading

Metrics = Mapping[str, Mapping[str, float | None]]
"""The figures by their names, of each variant by its name: reports/metrics/<morph>.json."""


FOREIGN = 1.5
"""From this strangeness of the keyframes on, the base's naturalness says nothing and is not ranked. Measured on the
pocket: paintings that it has not seen 0.9 to 1.1; a photograph of the moon 1.3, of a rocket at night 2.2, thirteen
others and prints 3.5 to 9. Not measured on other bases."""

LOOK, ENDS, PACE = "How the frames look", "How near the ends come to the keyframes", "How it moves"


@dataclass(frozen=True)
class Figure:
    """One figure. name: in the metrics. digits: after the point. meaning: for a reader who sees it the first time.

    tolerance, and share of the larger value: differences up to either are chance. Measured, rounded up: the most that
    four trainings with other seeds differed by, of the example and of four photographs (of naturalness: the example,
    of LPIPS: as PDV). A cross-fade is no rival in figures of PACE: it has an even pace by definition.
    """

    group: str
    name: str
    label: str
    unit: str
    better: Literal["higher", "lower", ""]
    digits: int
    tolerance: float
    meaning: str
    share: float = 0.0

    def alike(self, one: float, other: float) -> bool:
        """Whether two values differ by no more than chance."""
        return abs(one - other) <= max(self.tolerance, self.share * max(abs(one), abs(other)))


FIGURES = (
    Figure(
        LOOK,
        "ghosting",
        "Ghosting",
        "",
        "lower",
        3,
        0.011,
        "The share of a frame's structure that only both keyframes laid over each other explain: 0 is no double "
        "exposure, a cross-fade has about 0.2. It does not notice blur or broken shapes, and a hard cut has none.",
    ),
    Figure(
        LOOK,
        "naturalness",
        "Naturalness",
        "",
        "lower",
        2,
        0.02,
        "The base's denoising error on frames between keyframes, over its error on the keyframes: 1 is as natural as "
        "those, a double exposure lies above. It does not notice blur.",
    ),
    Figure(
        LOOK,
        "keyframes_strangeness",
        "Strangeness of the keyframes",
        "",
        "",
        2,
        0.0,
        "The base's denoising error on the keyframes, over that on its own samples of their captions: about 1 for "
        "pictures like those that it was trained on. From 1.5 on, its naturalness says nothing.",
    ),
    Figure(
        ENDS,
        "endpoints_psnr",
        "Endpoints, PSNR",
        "dB",
        "higher",
        1,
        0.03,
        "How near the frames at the keyframes, generated and never pasted in, come to the prepared pictures.",
    ),
    Figure(
        ENDS,
        "endpoints_floor_psnr",
        "Autoencoder alone",
        "dB",
        "",
        1,
        0.0,
        "The prepared pictures, only encoded and decoded by the base: endpoints can hardly come nearer.",
    ),
    Figure(
        ENDS,
        "endpoints_worst_psnr_gap",
        "Worst endpoint",
        "dB below",
        "lower",
        2,
        0.02,
        "How far the worst endpoint lies below the autoencoder alone.",
    ),
    Figure(ENDS, "endpoints_ssim", "Endpoints, SSIM", "", "higher", 3, 0.001, "Nearness by structure: 1 is equal."),
    Figure(
        ENDS,
        "endpoints_perceptual",
        "Endpoints, perceptual",
        "",
        "lower",
        3,
        0.001,
        "Nearness by perceptual distance: 0 is equal, 1 is black against white.",
    ),
    Figure(
        PACE,
        "neighbours_max_over_mean",
        "Largest step",
        "× the mean",
        "lower",
        2,
        0.25,
        "Shows a jump: 1 is an even pace.",
    ),
    Figure(
        PACE,
        "pdv",
        "Step variance (PDV)",
        "",
        "lower",
        5,
        0.0,
        "Variance of the distances from frame to frame: 0 is a perfectly even pace.",
        share=0.45,
    ),
    Figure(
        PACE,
        "ppl",
        "Path length (PPL)",
        "",
        "",
        3,
        0.0,
        "Perceptual distance covered from one keyframe to the next. Flicker and detours make it longer, and so does "
        "motion, which a cross-fade has none of: neither is better by itself.",
    ),
    Figure(
        PACE,
        "directness",
        "Path over straight line",
        "",
        "",
        2,
        0.0,
        "Near 1 for a cross-fade, higher for motion: neither is better by itself.",
    ),
    Figure(PACE, "lpips_ppl", "Path length, LPIPS", "", "", 3, 0.0, "PPL with the learned distance that papers use."),
    Figure(
        PACE,
        "lpips_pdv",
        "Step variance, LPIPS",
        "",
        "lower",
        5,
        0.0,
        "PDV with the learned distance that papers use.",
        share=0.45,
    ),
)


# Name in the summary, name in the metrics, digits.
SUMMARY = (
    ("endpoint_psnr", "endpoints_psnr", 3),
    ("endpoint_gap", "endpoints_worst_psnr_gap", 3),
    ("ghosting", "ghosting", 4),
    ("naturalness", "naturalness", 4),
    ("path_length", "neighbours_sum", 4),
    ("max_over_mean", "neighbours_max_over_mean", 4),
)


@dataclass(frozen=True)
class Row:
    """A row of the table: a figure, one cell for each variant that was made, and which cells are the best.

    warning: why nobody is, where there is more to say than that they do not differ; else empty.
    """

    figure: Figure
    cells: tuple[str, ...]
    best: tuple[int, ...]
    warning: str = ""


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


def table(metrics: Metrics, in_style: bool = False) -> list[Row]:
    """A row for each figure that at least one variant has. in_style: the morph is in the style of another set."""
    rows = [_row(figure, metrics, in_style) for figure in FIGURES]
    return [row for row in rows if any(cell != "–" for cell in row.cells)]


def summary(metrics: Metrics) -> dict[str, float | None]:
    """The few figures of a morph that `dvc metrics diff` compares."""
    values = {short: (metrics[MORPH.name][name], digits) for short, name, digits in SUMMARY}
    return {short: None if value is None else round(value, digits) for short, (value, digits) in values.items()}


def is_foreign(strangeness: object) -> bool:
    """Whether the base has no say in how natural a morph looks: its keyframes are strange to it, or nobody asked it."""
    return not isinstance(strangeness, int | float) or not strangeness < FOREIGN


def _row(figure: Figure, metrics: Metrics, in_style: bool) -> Row:
    made = [variant for variant in VARIANTS if variant.name in metrics]
    values = [metrics[variant.name].get(figure.name) for variant in made]
    known = {column: value for column, value in enumerate(values) if value is not None and math.isfinite(value)}
    cells = tuple(f"{known[column]:.{figure.digits}f}" if column in known else "–" for column in range(len(values)))
    if figure.name == "naturalness" and known and in_style:
        return Row(figure, cells, (), "Not ranked: the base alone does not know the style that this morph is in.")
    if figure.name == "naturalness" and known and is_foreign(metrics.get(MORPH.name, {}).get("keyframes_strangeness")):
        return Row(figure, cells, (), "Not ranked: these keyframes are not of the kind that the base knows.")
    rivals = {column: value for column, value in known.items() if figure.group != PACE or made[column] != CROSS_FADE}
    if not figure.better or len(rivals) < 2:
        return Row(figure, cells, ())
    top = (max if figure.better == "higher" else min)(rivals.values())
    # As good as the best are those that differ by chance, and those that read the same.
    best = tuple(
        column
        for column, value in rivals.items()
        if figure.alike(value, top) or round(value, figure.digits) == round(top, figure.digits)
    )
    return Row(figure, cells, best if len(best) < len(rivals) else ())
