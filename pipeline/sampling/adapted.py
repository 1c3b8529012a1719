"""Captions as text encoders read them under adapters that change these, too."""

from collections.abc import Sequence

from pipeline.adapters.mixing import WeightedAdapter, mixed_text_adapters, mixing_weights
from pipeline.base.conditioning import Conditioning
from pipeline.base.protocol import Base


def adapted_conditioning(
    base: Base, captions: Sequence[str], adapters: Sequence[Sequence[WeightedAdapter]]
) -> Conditioning:
    """B captions, each as the text encoders read it with the weighted adapters of its own row, (B rows).

    adapters: those of each caption, () for none; one without factors for text encoders changes nothing here. What is
    the same is encoded once: a caption over seeds, the empty caption of a batch, rows that differ only in the denoiser.
    """
    acting = [tuple((one, weight) for one, weight in own if weight and one.reads_text) for own in adapters]
    keys = [
        (caption, *((id(one), weight) for one, weight in own)) for caption, own in zip(captions, acting, strict=True)
    ]
    rows = [number for number, key in enumerate(keys) if key not in keys[:number]]
    loaded, weights = mixing_weights([acting[row] for row in rows])
    with mixed_text_adapters(base.text_encoders, loaded, weights):
        encoded = base.condition([captions[row] for row in rows])
    places = {keys[row]: place for place, row in enumerate(rows)}
    return encoded.take([places[key] for key in keys])
