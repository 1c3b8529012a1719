"""The variants of a morph, that is the morph itself and its two baselines, as every stage names them; and reading what
the stage `morph` made of them."""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.inputs import read_json
from pipeline.outputs import reading
from pipeline.sections import MorphSection


@dataclass(frozen=True)
class Variant:
    """One way to make the frames.

    name: in reports/metrics and reports/curves. label: for people, and in morph.json. folder: of its frames, within
    data/morphs/<morph>/.
    """

    name: str
    label: str
    folder: str


MORPH = Variant("morph", "morph", "frames")
WITHOUT_ADAPTERS = Variant("without_adapters", "without adapters", "no-lora")
CROSS_FADE = Variant("cross_fade", "cross-fade", "cross-fade")
VARIANTS = (MORPH, WITHOUT_ADAPTERS, CROSS_FADE)
"""In the order of strips, curves and tables. Only WITHOUT_ADAPTERS may be missing (`morph.without_adapters`)."""


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of a morph's morph.json. folder: data/morphs/<morph>.

    Raises:
        UserError: when it is missing or damaged, or the frames are not those that it speaks of.
    """
    with reading(folder / "morph.json"):
        facts = read_json(folder / "morph.json")
        _check_facts(facts)
    for variant in (variant for variant in VARIANTS if variant.label in facts["alphas"]):
        frame_paths(folder / variant.folder, len(facts["positions"]))
    return facts


def frame_paths(folder: Path, count: int) -> list[Path]:
    """The files of the frames in a folder, in order.

    Raises:
        UserError: when there are not `count` of them, all of one size by their headers.
    """
    with reading(folder):
        paths = sorted(folder.glob("*.png"))
        if len(paths) != count:
            raise ValueError(f"{len(paths)} frames, and morph.json speaks of {count}")
        sizes = set()
        for path in paths:
            with reading(path), Image.open(path) as frame:
                sizes.add(frame.size)
        if len(sizes) > 1:
            raise ValueError(f"frames of {len(sizes)} sizes")
        return paths


def _check_facts(facts: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError where the stage `morph` cannot have written them."""
    stops = [keyframe["frame"] for keyframe in facts["keyframes"]]
    count, settings = len(facts["positions"]), MorphSection.model_validate(facts["settings"])
    texts = [keyframe[key] for keyframe in facts["keyframes"] for key in ("file_name", "text")]
    names = [facts["set"], facts["style"], *(keyframe["file_name"] for keyframe in facts["keyframes"])]
    if not all(isinstance(text, str) for text in (*texts, facts["base"])) or any(n != Path(n).name for n in names):
        raise ValueError("set, base, captions and names are texts, and names those of files")
    if not all(type(stop) is int for stop in stops) or len(stops) < 2 or stops[0] != 0:
        raise ValueError("keyframes lie at frames, the first at 0")
    if any(one >= other for one, other in pairwise([*stops, count])) or count <= stops[-1]:
        raise ValueError("keyframes lie in order within the frames")
    lengths = [other - one for one, other in pairwise([*stops, count] if settings.loop else stops)]
    for label in (MORPH.label, CROSS_FADE.label, *facts["alphas"]):
        if [len(segment) - 1 for segment in facts["alphas"][label]] != lengths:
            raise ValueError(f"the alphas of {label} are not one for each frame")
    numbers = [alpha for segments in facts["alphas"].values() for segment in segments for alpha in segment]
    numbers += [*facts["positions"], facts["inverted_noise_std"][MORPH.label]]
    if not all(isinstance(number, int | float) and math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError("a number that is none")
