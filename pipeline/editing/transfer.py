"""Pictures changed by adapters, a caption or edges: noise is added to them, or found by inversion, and taken away anew.

SDEdit (Meng et al., ICLR 2022) with noise; with inversion the noise is the picture's own, which keeps its structure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator

from pipeline.adapters.mixing import WeightedAdapter, mixed_adapters, mixing_weights
from pipeline.base.conditioning import Conditioning, Control
from pipeline.base.noise_path import Level
from pipeline.base.protocol import Base
from pipeline.processes.chunks import in_chunks
from pipeline.sampling.captions import predictor
from pipeline.sampling.guidance import guided
from pipeline.sampling.solver import Predict, Progress, Solver, invert, sample

Start = Literal["inversion", "noise"]


@dataclass(frozen=True)
class Transfer:
    """How pictures are changed.

    strength: the share of the `steps` that is gone back, 0 (the picture stays) to 1 (from noise alone, or the picture's
    own). start: where the noise comes from. negative: the caption (one row) that guidance leads away from, if it is
    not 1. control_from, control_until: the shares of the steps taken between which edges have a say.
    """

    steps: int = 10
    strength: float = 0.6
    start: Start = "inversion"
    guidance: float = 1.0
    negative: Conditioning | None = None
    solver: Solver = "midpoint"
    control_from: float = 0.0
    control_until: float = 1.0

    @property
    def steps_taken(self) -> int:
        """Steps back from the clean end, and forth again: the nearest to the strength."""
        return int(self.steps * self.strength + 0.5)


@torch.no_grad()
def starting_points(
    base: Base,
    latents: torch.Tensor,
    captions: Conditioning,
    noise: torch.Tensor,
    transfer: Transfer,
    batch: int | None = None,
    progress: Progress = iter,
    accelerator: Accelerator | None = None,
) -> torch.Tensor:
    """Latents (N, C, h, w) of pictures with as much noise as the strength asks for: `noise`, or their own.

    captions: what the pictures show, one row each. Inversion asks the base alone, never with guidance.
    """
    taken = transfer.steps_taken
    if taken == 0:
        return latents
    if transfer.start == "noise":
        level = base.path.levels(transfer.steps)[taken]
        return level.a * latents + level.s * noise.to(latents)

    def inverted(chunk: slice) -> torch.Tensor:
        predict = predictor(base, captions.take(chunk))
        return invert(latents[chunk], predict, base.path, transfer.steps, progress, transfer.solver, taken)

    return torch.cat(in_chunks(len(latents), batch, inverted, accelerator)).to(base.device)


@torch.no_grad()
def transferred(
    base: Base,
    starts: torch.Tensor,
    captions: Conditioning,
    adapters: Sequence[Sequence[WeightedAdapter]],
    transfer: Transfer,
    control: Control | None = None,
    batch: int | None = None,
    progress: Progress = iter,
    accelerator: Accelerator | None = None,
) -> torch.Tensor:
    """Clean latents (B, C, h, w) from `starting_points`, with the captions (B rows) and adapters of each sample.

    control: with a picture for each sample. batch: samples that go through the denoiser at once, of which a picture
    takes two under guidance; None: all. accelerator: of the processes that share the work.
    """
    if transfer.steps_taken == 0:
        return starts
    doubled = transfer.guidance != 1
    if doubled and transfer.negative is None:
        raise ValueError("guidance needs a negative caption, if only the empty one")

    def sampled(chunk: slice) -> torch.Tensor:
        some, rows = starts[chunk], captions.take(chunk)
        loaded, weights = mixing_weights(adapters[chunk])
        edges = None if control is None else control.take(chunk)
        if doubled:
            assert transfer.negative is not None
            rows = Conditioning.stack([transfer.negative.repeat(len(some)), rows])
            weights = torch.cat([weights, weights], dim=1)
            edges = None if edges is None else edges.take([*range(len(some))] * 2)
        predict, restarts = _switched(base, rows, edges, transfer)
        if doubled:
            predict = guided(predict, transfer.guidance)
        with mixed_adapters(base.denoiser, loaded, weights):
            return sample(
                some,
                predict,
                base.path,
                transfer.steps,
                progress,
                transfer.solver,
                restarts,
                taken=transfer.steps_taken,
            )

    most = None if batch is None else batch // 2 if doubled else batch
    return torch.cat(in_chunks(len(starts), most, sampled, accelerator)).to(base.device)


def _switched(
    base: Base, captions: Conditioning, control: Control | None, transfer: Transfer
) -> tuple[Predict, list[int]]:
    """The prediction with control in its share of the steps, and the steps before which that begins or ends."""
    without = predictor(base, captions)
    if control is None or control.scale == 0:
        return without, []
    with_control = _controlled(base, captions, control)
    levels = base.path.levels(transfer.steps)[: transfer.steps_taken + 1][::-1]
    # A step counts where all of it lies within, as diffusers counts them.
    inside = [
        transfer.control_from <= number / transfer.steps_taken
        and (number + 1) / transfer.steps_taken <= transfer.control_until
        for number in range(transfer.steps_taken)
    ]

    def predict(latents: torch.Tensor, level: Level) -> torch.Tensor:
        # A step asks at its own level, or at its midpoint.
        number = sum(noisier.time >= level.time for noisier in levels) - 1
        return (with_control if inside[number] else without)(latents, level)

    changes = [number for number in range(1, len(inside)) if inside[number] != inside[number - 1]]
    return predict, changes


def _controlled(base: Base, captions: Conditioning, control: Control) -> Callable[[torch.Tensor, Level], torch.Tensor]:
    def predict(latents: torch.Tensor, level: Level) -> torch.Tensor:
        return base.predict(latents, torch.full((len(latents),), level.time), captions, control)

    return predict
