"""The variants of a morph, that is the morph itself and its two baselines, as every stage names them."""

from dataclasses import dataclass


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
