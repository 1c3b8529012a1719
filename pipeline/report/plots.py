"""Curves of a morph, of an edit and of a training as PNG. The same numbers give the same bytes on one machine.

Imports nothing else of the project, so that a stage which draws does not depend on the page or on code that measures.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

DPI = 150
INK, FAINT = "#222222", "#d9d9d9"
# Okabe and Ito's palette without its yellow, which is lost on white: distinct with every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2)))
MARKERS = ("o", "s", "^", "D")
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Curve:
    """One path: positions (N,) of its frames, distances (N - 1,) between neighbouring ones."""

    positions: ArrayLike
    distances: ArrayLike


def smoothness_plot(curves: Mapping[str, Curve], path: Path) -> None:
    """Write a PNG of the distance between neighbouring frames, and of the distance covered, by position.

    curves: by the name in the legend, the morph first, then its baselines. A distance stands midway between its frames.
    Raises ValueError if a curve's positions and distances do not belong together, or hold NaN.
    """
    with _style():
        figure = _figure(7.2, 5.6)
        near, far = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
        last = 1.0
        for index, (name, curve) in enumerate(curves.items()):
            positions, distances = (np.asarray(row, dtype=np.float64) for row in (curve.positions, curve.distances))
            if positions.size != distances.size + 1 or not np.isfinite([*positions, *distances]).all():
                raise ValueError(
                    f"curve {name!r}: {positions.size} positions for {distances.size} distances, "
                    "expected one more than distances, all finite"
                )
            covered = np.concatenate([[0.0], np.cumsum(distances)])
            last = max(last, float(positions[-1]))
            look = {
                "color": COLOURS[index % len(COLOURS)],
                "linestyle": DASHES[index % len(DASHES)],
                "marker": MARKERS[index % len(MARKERS)],
                "linewidth": 2.0 if index == 0 else 1.5,
                "markersize": 4.0 if index == 0 else 3.5,
                "zorder": 4 - index / 10,
            }
            near.plot((positions[:-1] + positions[1:]) / 2, distances, label=name, **look)
            far.plot(positions, covered, label=f"{name}: {covered[-1]:.3f}", **look)
        near.set_title("Distance between neighbouring frames")
        far.set_title("Distance covered since the first frame")
        far.set_xlabel("position")
        for axes in (near, far):
            _mark_keyframes(axes, last)
            axes.set_ylabel("perceptual distance")
            axes.set_ylim(bottom=0)
            axes.margins(y=0.12)
        near.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        far.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="in all", alignment="left")
        _save(figure, path)


@dataclass(frozen=True)
class Training:
    """One adapter's training: losses (S,) of its steps, and its loss at fixed noise by the steps done."""

    losses: Sequence[float]
    validation: Mapping[int, float] = field(default_factory=dict)


def loss_plot(trainings: Mapping[str, Training], rates: ArrayLike, path: Path) -> None:
    """Write a PNG of the training loss of each adapter: a smoothed line over the faint raw one.

    trainings: by adapter; one that stopped early has fewer losses. Losses at fixed noise are dots. rates: learning
    rates (S,) of the longest training, drawn below where they change. The smoothed line is `smoothed`. The axis ends
    where the smoothed lines, the dots and nine tenths of the raw values fit. Raises ValueError for more losses than
    rates, or one that is not finite.
    """
    rate = np.asarray(rates, dtype=np.float64)
    changes = rate.size > 1 and float(np.ptp(rate)) > 0
    height = max(3.8, 0.8 + 0.2 * len(trainings))
    with _style():
        figure = _figure(7.2, height + (1.4 if changes else 0))
        ratios = (height, 1.4) if changes else (1,)
        axes, *below = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
        tops = []
        for index, (name, training) in enumerate(trainings.items()):
            raw = np.asarray(training.losses, dtype=np.float64)
            if raw.size > rate.size or not np.isfinite([*raw, *training.validation.values()]).all():
                raise ValueError(
                    f"loss of {name!r}: {raw.size} values for {rate.size} steps, expected no more, all finite"
                )
            smooth = smoothed(raw)
            tops += [float(smooth.max()), float(np.quantile(raw, 0.9))] if raw.size else []
            tops += training.validation.values()
            colour = COLOURS[index % len(COLOURS)]
            dash = DASHES[index // len(COLOURS) % len(DASHES)]
            faint = 0.35 / max(1, len(trainings) / 3)
            axes.plot(range(raw.size), raw, color=colour, linewidth=0.5, alpha=faint, zorder=2)
            axes.plot(smooth, color=colour, linestyle=dash, linewidth=1.6, label=_truncated(name), zorder=3)
            dots = {"markersize": 6, "markeredgecolor": "white", "clip_on": False}
            dotted = training.validation
            axes.plot(list(dotted), list(dotted.values()), "o", color=colour, zorder=4, **dots)
        axes.set_title("Training loss (dots: loss at fixed noise)" if _validated(trainings) else "Training loss")
        axes.set_ylabel("loss")
        # A few raw spikes, of timesteps that are hard by nature, would press all the lines onto the axis.
        axes.set_ylim(0, 1.15 * max(tops, default=0.0) or 1.0)
        if rate.size > 1:
            axes.set_xlim(0, max([rate.size - 1, *(step for one in trainings.values() for step in one.validation)]))
        if trainings:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), fontsize=8)
        for lower in below:
            lower.plot(rate, color=INK, linewidth=1.4)
            lower.set_ylabel("learning rate")
            lower.set_ylim(0, 1.1 * float(rate.max()))
            lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        last = below[-1] if below else axes
        last.set_xlabel("step")
        last.xaxis.set_major_locator(MaxNLocator(integer=True))
        _save(figure, path)


def edit_plot(rows: Sequence[Mapping[str, float | None]], path: Path) -> None:
    """Write a PNG of what an edit kept of its pictures and how near their manner came to the style, by scale.

    rows: with `scale`, `edges_kept`, and `style_distance` and `style_strangeness` (None: there is no style).
    """
    with _style():
        figure = _figure(7.2, 3.2)
        axes = figure.subplots()
        lines = (
            ("edges_kept", "edges kept (1: all)"),
            ("style_distance", "distance to the style (1: the pictures')"),
            ("style_strangeness", "strange to the style's adapters (1: its own pictures)"),
        )
        for number, (name, label) in enumerate(lines):
            points = [(row["scale"], row[name]) for row in rows if row[name] is not None]
            if points:
                look: dict[str, Any] = {
                    "color": COLOURS[number],
                    "linestyle": DASHES[number],
                    "marker": MARKERS[number],
                }
                axes.plot(*zip(*points, strict=True), label=label, linewidth=2.0, markersize=4.5, **look)
        axes.set_title("What is kept, and how near the style is")
        axes.set_xlabel("scale of the adapters")
        axes.set_ylim(bottom=0)
        axes.margins(y=0.12)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        _save(figure, path)


def _validated(trainings: Mapping[str, Training]) -> bool:
    return any(training.validation for training in trainings.values())


def smoothed(values: ArrayLike) -> Floats:
    """Mean under a centred triangle, a fifth of the training and at least 5 steps wide, cut at the ends: (S,) to (S,).

    Centred, and not the usual exponential mean, which runs behind and starts from one noisy value.
    """
    raw = np.asarray(values, dtype=np.float64)
    reach = max(3, raw.size // 10)
    triangle = reach - np.abs(np.arange(1 - reach, reach))
    # The full convolution cut to the middle: mode "same" returns the longer of the two, and trainings may be short.
    middle = slice(reach - 1, reach - 1 + raw.size)
    if raw.size == 0:
        return raw
    return np.convolve(raw, triangle)[middle] / np.convolve(np.ones_like(raw), triangle)[middle]


def _style() -> AbstractContextManager[None]:
    # From matplotlib's own defaults, so that nobody's matplotlibrc changes the bytes.
    return matplotlib.style.context(["default", STYLE])


def _figure(width: float, height: float) -> Figure:
    # Not pyplot: no window system is asked for and no figure is left behind.
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _mark_keyframes(axes: Axes, last: float) -> None:
    axes.set_xlim(0, last)
    keyframes = range(int(last) + 1)
    for keyframe in keyframes:
        axes.axvline(keyframe, color=INK, linewidth=0.7, alpha=0.5, zorder=1, clip_on=False)
    if len(keyframes) > 2:
        axes.set_xticks(keyframes)


def _truncated(name: str, longest: int = 20) -> str:
    # Names of one set differ at the end more often than at the start.
    return name if len(name) <= longest else f"{name[:6]}…{name[7 - longest :]}"


def _save(figure: Figure, path: Path) -> None:
    # Without its version in the file, an update of matplotlib that draws the same writes the same.
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})
