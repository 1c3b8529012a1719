"""Captions as adapters read them, and pictures from captions and noise alone."""

from collections.abc import Sequence

import torch

from pipeline.adapters.mixing import WeightedAdapter, mixed_adapters, mixed_text_adapters, mixing_weights
from pipeline.base.conditioning import Conditioning
from pipeline.base.noise_path import Level
from pipeline.base.protocol import Base
from pipeline.sampling.guidance import guided
from pipeline.sampling.solver import Predict, Progress, Solver, sample


def predictor(base: Base, conditioning: Conditioning) -> Predict:
    """The base's prediction for a batch that always has these captions."""

    def predict(latents: torch.Tensor, level: Level) -> torch.Tensor:
        return base.predict(latents, torch.full((len(latents),), level.time), conditioning)

    return predict


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


@torch.no_grad()
def sample_captions(
    base: Base,
    noise: torch.Tensor,
    conditioning: Conditioning,
    adapters: Sequence[Sequence[WeightedAdapter]] = (),
    *,
    steps: int,
    guidance: float = 1.0,
    solver: Solver = "midpoint",
    progress: Progress = iter,
) -> torch.Tensor:
    """Clean latents (B, C, h, w) from noise (B, C, h, w) and B captions.

    adapters: those of each sample; () for none anywhere. conditioning: the captions as they read them
    (`adapted_conditioning`). At guidance 1 the empty caption is not evaluated at all.
    """
    adapters = adapters or [()] * len(noise)
    loaded, weights = mixing_weights(adapters)
    if guidance == 1:
        predict = predictor(base, conditioning)
    else:
        empty = adapted_conditioning(base, [""] * len(noise), adapters)
        predict = guided(predictor(base, Conditioning.stack([empty, conditioning])), guidance)
        # Both halves of the doubled batch see the same adapters.
        weights = torch.cat([weights, weights], dim=1)
    with mixed_adapters(base.denoiser, loaded, weights):
        return sample(noise, predict, base.path, steps, progress, solver)
