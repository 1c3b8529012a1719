"""Curves of a morph and of a training as PNG. The same numbers give the same bytes on one machine.

Imports nothing else of the project, so that a stage which draws does not depend on code that measures.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

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
# Okabe and Ito's palette without its yellow, which is lost on white: told apart with every common colour blindness.
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
    """Write a PNG of the distance between neighbouring frames, and of the way covered, along position.

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


def loss_plot(steps: ArrayLike, losses: Mapping[str, ArrayLike], path: Path) -> None:
    """Write a PNG of the training loss of each adapter: a smoothed line over the faint raw one.

    steps: (S,) shared by all. losses: (S,) by adapter. The smoothed line is `smoothed`. The axis ends where the
    smoothed lines and nine tenths of the raw values fit. Raises ValueError if lengths differ or a loss is not finite.
    """
    at = np.asarray(steps, dtype=np.float64)
    with _style():
        figure = _figure(7.2, max(3.8, 0.8 + 0.2 * len(losses)))
        axes = figure.subplots()
        tops = []
        for index, (name, values) in enumerate(losses.items()):
            raw = np.asarray(values, dtype=np.float64)
            if raw.shape != at.shape or not np.isfinite(raw).all():
                raise ValueError(
                    f"loss of {name!r}: {raw.size} values for {at.size} steps, expected as many, all finite"
                )
            smooth = smoothed(raw)
            tops += [float(smooth.max()), float(np.quantile(raw, 0.9))] if raw.size else []
            colour = COLOURS[index % len(COLOURS)]
            dash = DASHES[index // len(COLOURS) % len(DASHES)]
            axes.plot(at, raw, color=colour, linewidth=0.5, alpha=0.35 / max(1, len(losses) / 3), zorder=2)
            axes.plot(at, smooth, color=colour, linestyle=dash, linewidth=1.6, label=_shortened(name), zorder=3)
        axes.set_title("Training loss")
        axes.set_xlabel("step")
        axes.set_ylabel("mean squared error of the prediction")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        # A few raw spikes, of timesteps that are hard by nature, would press all the lines onto the axis.
        axes.set_ylim(0, 1.15 * max(tops, default=0.0) or 1.0)
        if at.size > 1:
            axes.set_xlim(at[0], at[-1])
        if losses:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), fontsize=8)
        _save(figure, path)


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


def _shortened(name: str, longest: int = 20) -> str:
    # Names of one set differ at the end more often than at the start.
    return name if len(name) <= longest else f"{name[:6]}…{name[7 - longest :]}"


def _save(figure: Figure, path: Path) -> None:
    # Without its version in the file, an update of matplotlib that draws the same writes the same.
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})
