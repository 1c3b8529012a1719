"""How strange pictures are to the base: whether its judgement of them means anything."""

import torch

from pipeline.base.conditioning import Conditioning
from pipeline.base.noise_path import Level
from pipeline.base.protocol import Base
from pipeline.evaluation.naturalness import mean_errors
from pipeline.sampling.solver import sample

DRAWS, STEPS = 2, 10
"""The base's own samples of each caption, and the steps that make them."""


def strangeness(base: Base, pictures: torch.Tensor, captions: Conditioning, batch: int | None = None) -> float:
    """The base's denoising error on pictures (K, 3, H, W), over that on its own samples of their K captions.

    About 1 for pictures like those that the base was trained on; several times as much for others. Without adapters.
    """
    latents = base.encode(pictures).mean
    rows = torch.arange(len(latents)).repeat(DRAWS)
    noise = [
        torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(1000 + n)) for n in range(len(rows))
    ]
    parts = []
    for chunk in torch.arange(len(rows)).split(batch or len(rows)):
        given = captions.take(rows[chunk])
        start = torch.stack([noise[number] for number in chunk]).to(latents)
        # As pictures are: decoded, cut to what a picture can hold, and encoded again.
        samples = [base.decode(row[None]) for row in _sample(base, start, given)]
        own = torch.cat([base.encode(picture.clamp(0, 1)).mean for picture in samples])
        parts.append(mean_errors(base, own, given))
    return float(mean_errors(base, latents, captions, batch).mean() / torch.cat(parts).mean())


@torch.no_grad()
def _sample(base: Base, noise: torch.Tensor, captions: Conditioning) -> torch.Tensor:
    def predict(latents: torch.Tensor, level: Level) -> torch.Tensor:
        return base.predict(latents, torch.full((len(latents),), level.time), captions)

    return sample(noise, predict, base.path, STEPS)
