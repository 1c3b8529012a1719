"""What changed between two states of params or figures, and whether a figure is better or worse for it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.figures import FIGURES

JUDGED = {figure.name: figure for figure in FIGURES if figure.better}
"""Figures that are better in one direction, as the report's table has them. The others get no verdict."""
# More frames make shorter steps, and other keyframes another path: then these cannot be compared with earlier ones.
STEPS = ("pdv",)


@dataclass(frozen=True)
class Change:
    """One key with its value before and now; None where it is absent."""

    key: str
    before: Any
    now: Any


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Every key, dotted, whose value differs."""
    old, new = dict(flatten(before)), dict(flatten(now))
    return [Change(key, old.get(key), new.get(key)) for key in sorted(old | new) if old.get(key) != new.get(key)]


def flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key, dotted, with its value."""
    if isinstance(content, Mapping) and content:
        for key, value in content.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, content


def difference(change: Change) -> float | None:
    """Now minus before; None unless both are numbers."""
    if isinstance(change.before, int | float) and isinstance(change.now, int | float):
        return change.now - change.before
    return None


def steps_differ(params: Sequence[Change]) -> bool:
    """Whether a change of params makes steps between frames incomparable: other frames, keyframes or morphs."""
    return any(change.key.rpartition(".")[2] in ("frames", "keyframes", "loop") for change in params)


def judged(change: Change, steps_differ: bool = False, foreign: Collection[str] = ()) -> str:
    """The verdict on a morph's figure, whose key is `<morph>.morph.<figure>`; empty for all others, and for those that
    cannot be compared.

    steps_differ: the frames or keyframes changed. foreign: morphs of whose naturalness the base knows nothing.
    """
    morph, own, figure = change.key.partition(".morph.")
    # Whether a baseline got better is no merit of the change.
    if not own or (figure == "naturalness" and morph in foreign) or (steps_differ and figure.endswith(STEPS)):
        return ""
    return verdict(change)


def verdict(change: Change) -> str:
    """Better, worse or an empty text, by the figure's name, the last part of the key; empty, too, within tolerance."""
    gain = difference(change)
    figure = JUDGED.get(change.key.rpartition(".")[2])
    if gain is None or figure is None or figure.alike(change.before, change.now):
        return ""
    return "better" if (gain > 0) == (figure.better == "higher") else "worse"
