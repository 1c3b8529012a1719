"""How strange pictures are to the base: whether its judgement of them means anything."""

import torch

from pipeline.base.conditioning import Conditioning
from pipeline.base.noise_path import Level
from pipeline.base.protocol import Base
from pipeline.evaluation.naturalness import picture_errors
from pipeline.processes.chunks import in_chunks
from pipeline.sampling.solver import sample

DRAWS, STEPS = 2, 10
"""The base's own samples of each caption, and the steps that make them."""


def strangeness(base: Base, pictures: torch.Tensor, captions: Conditioning, batch: int | None = None) -> float:
    """The base's denoising error on pictures (K, 3, H, W), over that on its own samples of their K captions.

    About 1 for pictures like those that the base was trained on; several times as much for others. Without adapters.
    """
    rows = torch.arange(len(pictures)).repeat(DRAWS)

    def errors_of_pictures(chunk: slice) -> torch.Tensor:
        return picture_errors(base, pictures[chunk], captions.take(chunk))

    def errors_of_samples(chunk: slice) -> torch.Tensor:
        given = captions.take(rows[chunk])
        shape = base.encode(pictures[:1]).mean.shape[1:]
        numbers = range(len(rows))[chunk]
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(1000 + number)) for number in numbers]
        samples = base.decode(_sample(base, torch.stack(noise).to(base.device), given))
        # As pictures are: decoded, cut to what a picture can hold, and encoded again.
        return picture_errors(base, samples.clamp(0, 1), given)

    found = torch.cat(in_chunks(len(pictures), batch, errors_of_pictures))
    own = torch.cat(in_chunks(len(rows), batch, errors_of_samples))
    return float(found.mean() / own.mean())


@torch.no_grad()
def _sample(base: Base, noise: torch.Tensor, captions: Conditioning) -> torch.Tensor:
    def predict(latents: torch.Tensor, level: Level) -> torch.Tensor:
        return base.predict(latents, torch.full((len(latents),), level.time), captions)

    return sample(noise, predict, base.path, STEPS)
