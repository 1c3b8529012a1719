"""The frames of a morph to scrub through, in every variant that was made: what the report shows, and the studio."""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.frames.variants import VARIANTS, Variant

MAX_FRAMES = 120  # of a longer morph every second one, or third, and all at keyframes


@dataclass(frozen=True)
class FrameView:
    """One frame in the viewer.

    position: as text. caption: the keyframe's, or the two that the frame lies between. alphas, as text, and pictures,
    addresses: one for each of the variants that were made, since each is paced by itself.
    """

    number: int
    position: str
    caption: str
    alphas: tuple[str, ...]
    pictures: tuple[str, ...]


def frame_views(facts: Mapping[str, Any], address: Callable[[int, Variant], str]) -> tuple[FrameView, ...]:
    """The frames of the viewer, each in every variant that was made.

    facts: the content of morph.json. address: of a frame's picture, by its number and variant.
    """
    count, stops = len(facts["positions"]), stops_of(facts)
    every = -(-count // MAX_FRAMES)
    return tuple(
        FrameView(
            number,
            *describe_frame(number, facts),
            tuple(alpha_of(number, facts, variant) for variant in variants_of(facts)),
            tuple(address(number, variant) for variant in variants_of(facts)),
        )
        for number in range(count)
        if number % every == 0 or number in stops
    )


def describe_frame(number: int, facts: Mapping[str, Any]) -> tuple[str, str]:
    """Position of a frame as text, and the caption or captions there."""
    stops, captions = stops_of(facts), [keyframe["text"] for keyframe in facts["keyframes"]]
    position = f"position {facts['positions'][number]:.3g}"
    if number in stops:
        return f"{position}, keyframe", captions[stops.index(number)]
    segment = bisect_right(stops, number) - 1
    following = captions[(segment + 1) % len(captions)]  # a loop's last segment leads to the first keyframe
    return position, f"{captions[segment]} → {following}" if captions[segment] or following else ""


def alpha_of(number: int, facts: Mapping[str, Any], variant: Variant) -> str:
    """How far a frame of a variant is from one keyframe to the next, as text; empty at a keyframe."""
    stops = stops_of(facts)
    if number in stops:
        return ""
    segment = bisect_right(stops, number) - 1
    return f"alpha {facts['alphas'][variant.label][segment][number - stops[segment]]:.3g}"


def variants_of(facts: Mapping[str, Any]) -> list[Variant]:
    """The variants that were made."""
    return [variant for variant in VARIANTS if variant.label in facts["alphas"]]


def stops_of(facts: Mapping[str, Any]) -> list[int]:
    """Which frame lies at each keyframe."""
    return [keyframe["frame"] for keyframe in facts["keyframes"]]
