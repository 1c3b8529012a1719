"""Pictures from adapters in training, for the dashboard alone.

They leave no trace in a training (a test compares its bytes with and without them), so no stage declares this module:
an edit of how previews look, or of how they are sampled, makes no adapter stale.
"""

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.base.conditioning import Conditioning
from pipeline.base.posterior import keyed_seed
from pipeline.base.protocol import Base
from pipeline.frames.tensors import Frame, to_arrays
from pipeline.sampling.guidance import predictor
from pipeline.sampling.solver import sample
from pipeline.training.loop import Job

CAPTIONS, STEPS = 4, 10


@torch.no_grad()
def preview_sheet(base: Base, jobs: Sequence[Job], reads_text: bool = False) -> Frame:
    """What the adapters in training make of their captions from fixed noise: a row for each, four captions at most.

    reads_text: whether the text encoders are in training, too, and read the captions otherwise than they did at first.
    The autoencoder is on the base's device only meanwhile, also where memory runs out.
    """
    examples = [example for job in jobs for example in job.examples[:CAPTIONS]]
    noise = torch.cat(
        [
            torch.randn(
                example.posterior.mean.shape,
                generator=torch.Generator().manual_seed(keyed_seed("preview", example.digest)),
            )
            for example in examples
        ]
    ).to(base.device)
    if reads_text:
        captions = base.condition([example.caption for example in examples])
    else:
        captions = Conditioning.stack([example.conditioning for example in examples]).to(base.device)
    latents = sample(noise, predictor(base, captions), base.path, STEPS)
    try:
        base.move_encoders(base.device, text=False)  # only for now: training needs the room
        pictures = to_arrays(base.decode(latents))
    finally:
        base.move_encoders(torch.device("cpu"), text=False)
    columns = len(examples) // len(jobs)
    rows = [np.concatenate(pictures[first : first + columns], axis=1) for first in range(0, len(examples), columns)]
    return np.concatenate(rows)
