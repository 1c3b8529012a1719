"""How strange pictures are to adapters: whether a style's own would know an edit for one of theirs."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator

from pipeline.adapters.mixing import WeightedAdapter, mixed_adapters, mixing_weights
from pipeline.base.protocol import Base
from pipeline.evaluation.naturalness import picture_errors
from pipeline.processes.chunks import in_chunks
from pipeline.sampling.adapted import adapted_conditioning


def errors_under(
    base: Base,
    pictures: torch.Tensor,
    captions: Sequence[str],
    adapters: Sequence[WeightedAdapter],
    batch: int | None = None,
    accelerator: Accelerator | None = None,
) -> torch.Tensor:
    """`picture_errors` (N,) of pictures (N, 3, H, W) and their captions under adapters: low where these have learned
    such pictures. batch: of so many at once, dealt out to the processes of the accelerator."""

    def errors(chunk: slice) -> torch.Tensor:
        some, alike = captions[chunk], [adapters] * len(captions[chunk])
        with mixed_adapters(base.denoiser, *mixing_weights(alike)):
            return picture_errors(base, pictures[chunk], adapted_conditioning(base, some, alike))

    return torch.cat(in_chunks(len(pictures), batch, errors, accelerator))
