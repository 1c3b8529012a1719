"""Pictures changed by adapters, a caption or edges: noise is added to them, or found by inversion, and taken away anew.

SDEdit (Meng et al., ICLR 2022) with noise; with inversion the noise is the picture's own, which keeps its structure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator

from pipeline.adapters.mixing import WeightedAdapter, mixed_adapters, mixing_weights
from pipeline.base.conditioning import Conditioning, Control
from pipeline.base.noise_path import Level, NoisePath
from pipeline.base.protocol import Base
from pipeline.processes.chunks import in_chunks
from pipeline.sampling.adapted import adapted_conditioning
from pipeline.sampling.consistency import Sampler, consistency_levels, sample_consistently
from pipeline.sampling.guidance import guided, predictor
from pipeline.sampling.refining import Refinement, steps_before
from pipeline.sampling.solver import Predict, Progress, falling_levels, invert, sample, step_at

Start = Literal["inversion", "noise"]


@dataclass(frozen=True)
class Transfer:
    """How pictures are changed.

    strength: the share of the `steps` that is gone back, 0 (the picture stays) to 1 (from noise alone, or the picture's
    own). start: where the noise comes from. negative: the caption that guidance leads away from.
    control_from, control_until: the shares of the steps taken between which edges have a say. solver: consistency takes
    all of its few steps within the strength, and starts from noise alone. fresh: the share of the noise drawn anew
    between steps, of consistency and ddim.
    """

    steps: int = 10
    strength: float = 0.6
    start: Start = "inversion"
    guidance: float = 1.0
    negative: str = ""
    solver: Sampler = "midpoint"
    control_from: float = 0.0
    control_until: float = 1.0
    fresh: float = 0.0

    @property
    def steps_taken(self) -> int:
        """Steps back from the clean end, and forth again: the nearest to the strength."""
        if self.solver == "consistency":
            return self.steps if self.strength else 0
        return int(self.steps * self.strength + 0.5)

    @property
    def with_control(self) -> list[bool]:
        """Of each step taken, the noisiest first: whether edges have a say. All of it must lie within their share, as
        diffusers counts steps."""
        taken = self.steps_taken
        return [
            self.control_from <= number / taken and (number + 1) / taken <= self.control_until
            for number in range(taken)
        ]

    def falling_levels(self, path: NoisePath) -> tuple[Level, ...]:
        """The levels between which the steps taken lie, from the noise down to the clean end."""
        if self.solver == "consistency":
            return consistency_levels(path, self.steps, self.strength)
        return falling_levels(path, self.steps, self.steps_taken)


@dataclass(frozen=True)
class Work:
    """How the work is done. batch: samples that go through the denoiser at once, of which a picture takes two under
    guidance; None: all. accelerator: of the processes that share the work."""

    batch: int | None = None
    progress: Progress = iter
    accelerator: Accelerator | None = None


DEFAULT = Work()


@torch.no_grad()
def trail_to_noise(
    base: Base,
    latents: torch.Tensor,
    captions: Conditioning,
    noise: torch.Tensor,
    transfer: Transfer,
    work: Work = DEFAULT,
    filling: bool = False,
) -> torch.Tensor:
    """Latents (N, C, h, w) of pictures at every level (T + 1, N, C, h, w) of the T steps taken, the clean ones first.

    The last have as much noise as the strength asks for: that given as `noise`, or their own. captions: what the
    pictures show, one row each. Inversion asks the base alone, never with guidance. filling: holes are to be filled, so
    that at strength 1 the last are `noise` alone, as diffusers inpaints: most bases end with a trace of the picture,
    and what lay in a hole would show. Raises ValueError for the inversion of consistency, which has none.
    """
    taken = transfer.steps_taken
    if transfer.start == "noise":
        levels = transfer.falling_levels(base.path)[-2::-1] if taken else ()
        noise = noise.to(latents)
        trail = torch.stack([latents, *(level.a * latents + level.s * noise for level in levels)])
        if filling and transfer.strength == 1:
            trail[-1] = noise
        return trail

    solver = transfer.solver
    if solver == "consistency":
        raise ValueError("consistency jumps, and so has no inversion")

    def inverted(chunk: slice) -> torch.Tensor:
        trail = [latents[chunk]]

        def keep(x: torch.Tensor, level: Level) -> torch.Tensor:
            trail.append(x)
            return x

        if taken:
            predict = predictor(base, captions.take(chunk))
            invert(trail[0], predict, base.path, transfer.steps, work.progress, solver, taken, keep)
        return torch.stack(trail)

    return torch.cat(in_chunks(len(latents), work.batch, inverted, work.accelerator), dim=1).to(base.device)


@torch.no_grad()
def transferred(
    base: Base,
    trail: torch.Tensor,
    captions: Conditioning,
    adapters: Sequence[Sequence[WeightedAdapter]],
    transfer: Transfer,
    work: Work = DEFAULT,
    control: Control | None = None,
    masks: torch.Tensor | None = None,
    refinement: Refinement | None = None,
    seeds: Sequence[int] = (),
) -> torch.Tensor:
    """Clean latents (B, C, h, w) from the end of `trail_to_noise`, with the captions (B rows) and adapters of each.

    captions: as the samples' adapters read them (`adapted_conditioning`).
    control: with a picture for each sample. masks: (B, 1, h, w) in [0, 1], 0 where after every step the sample is put
    back on its trail, as diffusers inpaints with ordinary bases; without them the end of the trail is enough.
    refinement: of the last steps, for each sample; adapters and control have no part in those.
    seeds: one for each sample, of the noise drawn anew between steps. consistency goes with no refinement.
    """
    if transfer.steps_taken == 0:
        return trail[0]
    doubled = transfer.guidance != 1
    falling = transfer.falling_levels(base.path)
    rising = falling[::-1]
    own = transfer.steps_taken if refinement is None else steps_before(refinement.start, base.path, falling)

    def sampled(chunk: slice) -> torch.Tensor:
        some, rows = trail[:, chunk], captions.take(chunk)
        loaded, weights = mixing_weights(adapters[chunk])
        edges = None if control is None else control.take(chunk)
        if doubled:
            negative = adapted_conditioning(base, [transfer.negative] * len(rows), adapters[chunk])
            rows = Conditioning.stack([rows.beside(negative.tensors), rows])
            weights = torch.cat([weights, weights], dim=1)
            edges = None if edges is None else edges.take([*range(some.shape[1])] * 2)
        predict, restarts = _switched(base, rows, edges, transfer, falling, own)
        if doubled:
            predict = guided(predict, transfer.guidance)
        if refinement is not None:
            predict = refinement.take(chunk).taking_over(predict, base.path, falling, transfer.guidance)

        def put_back(x: torch.Tensor, level: Level) -> torch.Tensor:
            return x if masks is None else torch.lerp(some[rising.index(level)], x, masks[chunk].to(x))

        with mixed_adapters(base.denoiser, loaded, weights):
            if transfer.solver == "consistency":
                return sample_consistently(
                    some[-1],
                    predict,
                    base.path,
                    falling,
                    seeds[chunk],
                    work.progress,
                    put_back,
                    transfer.fresh,
                )
            return sample(
                some[-1],
                predict,
                base.path,
                transfer.steps,
                work.progress,
                transfer.solver,
                restarts,
                taken=transfer.steps_taken,
                after=put_back,
                fresh=transfer.fresh,
                seeds=seeds[chunk],
            )

    most = None if work.batch is None else work.batch // 2 if doubled else work.batch
    return torch.cat(in_chunks(trail.shape[1], most, sampled, work.accelerator)).to(base.device)


def _switched(
    base: Base,
    captions: Conditioning,
    control: Control | None,
    transfer: Transfer,
    levels: Sequence[Level],
    own: int,
) -> tuple[Predict, list[int]]:
    """The prediction with control in its share of the steps, and the steps before which that begins or ends.

    levels: of the steps taken, from the noise down. own: so many of them are the base's, the first ones.
    """
    without = predictor(base, captions)
    if control is None or control.scale == 0:
        return without, []
    with_control = predictor(base, captions, control)
    inside = [number < own and acting for number, acting in enumerate(transfer.with_control)]

    def predict(latents: torch.Tensor, level: Level) -> torch.Tensor:
        return (with_control if inside[step_at(level, levels)] else without)(latents, level)

    changes = [number for number in range(1, len(inside)) if inside[number] != inside[number - 1]]
    return predict, changes
