"""The morph engine: keyframes inverted together, and all frames of a segment sampled together, step by step.

Nothing is stored between steps and no weights are swapped: every sample of a batch has its own adapter weights, its own
caption, and, in the chosen blocks, keys and values from the endpoints that ride in the same batch.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from pipeline.adapters.mixing import Adapter, WeightedAdapter, mixed_adapters, mixing_weights
from pipeline.base.conditioning import Conditioning
from pipeline.base.protocol import Base
from pipeline.morphing.attention import cached_captions
from pipeline.morphing.diffmorpher import KeyframeAttention, adain, endpoint_attention, in_first_steps
from pipeline.morphing.interpolation import lerp, slerp
from pipeline.processes.chunks import in_chunks
from pipeline.sampling.adapted import adapted_conditioning
from pipeline.sampling.guidance import guided, predictor
from pipeline.sampling.solver import Predict, Progress, Solver, falling_levels, invert, sample

Bars = Callable[[str], Progress]
"""A progress bar for a part of the work, by its name."""


@dataclass(frozen=True)
class EncodedKeyframe:
    """A picture as the engine sees it: clean latents (C, h, w), its caption (one row), its weighted adapters.

    style: weighted adapters that frames have besides, and inversion does not: what is inverted with them comes back as
    it was. styled: the caption as frames have it, where the style changes how it is read; None: as inversion has it.
    """

    latents: torch.Tensor
    conditioning: Conditioning
    adapters: tuple[WeightedAdapter, ...] = ()
    style: tuple[WeightedAdapter, ...] = ()
    styled: Conditioning | None = None

    @property
    def of_frames(self) -> Conditioning:
        """Its caption (one row) in frames."""
        return self.conditioning if self.styled is None else self.styled


@dataclass(frozen=True)
class Recipe:
    """How frames are made. negative: the caption that guidance leads away from, if it is not 1."""

    steps: int = 10
    inversion_steps: int = 10
    solver: Solver = "midpoint"
    use_adain: bool = False
    attention: KeyframeAttention | None = None
    guidance: float = 1.0
    rescale: float = 0.0
    negative: str = ""


@torch.no_grad()
def invert_keyframes(
    base: Base,
    keyframes: Sequence[EncodedKeyframe],
    recipe: Recipe,
    batch: int | None = None,
    progress: Bars = lambda label: iter,
    accelerator: Accelerator | None = None,
) -> torch.Tensor:
    """The noise (K, C, h, w) of each keyframe, with its own adapters and caption, never with guidance.

    `batch` at most go through the denoiser at once; None: all. accelerator: of the processes that share the work.
    """

    def inverted(chunk: slice) -> torch.Tensor:
        some = keyframes[chunk]
        adapters, weights = mixing_weights([keyframe.adapters for keyframe in some])
        with mixed_adapters(base.denoiser, adapters, weights), cached_captions(base.cross_attention()):
            predict = predictor(base, Conditioning.stack([keyframe.conditioning for keyframe in some]))
            latents = torch.stack([keyframe.latents for keyframe in some])
            return invert(latents, predict, base.path, recipe.inversion_steps, progress("invert"), recipe.solver)

    return torch.cat(in_chunks(len(keyframes), batch, inverted, accelerator)).to(base.device)


@torch.no_grad()
def morph_segment(
    base: Base,
    first: EncodedKeyframe,
    second: EncodedKeyframe,
    noise: torch.Tensor,
    alphas: torch.Tensor,
    recipe: Recipe,
    batch: int | None = None,
    progress: Bars = lambda label: iter,
    accelerator: Accelerator | None = None,
) -> torch.Tensor:
    """Clean latents (F, C, h, w) of the frames at `alphas` (F,) between two keyframes with inverted noise (2, C, h, w).

    A frame has the slerp of the two noises, with AdaIN if asked, the lerp of the captions (also of the negative one,
    where adapters change how the ends read it), the weights
    W + (1 - alpha) D0 + alpha D1 and, if asked, its endpoints' self-attention (DiffMorpher, Zhang et al. 2024).
    At most `batch` samples go through the denoiser at once; None: all. Under guidance a frame is two, and attention
    needs the endpoints beside the frames every time. Raises ValueError where `batch` has no room for a frame.
    accelerator: of the processes that share the work.
    """
    copies, beside = 1 if recipe.guidance == 1 else 2, 2 if recipe.attention else 0
    room = None if batch is None else batch // copies - beside
    if room is not None and room < 1:
        raise ValueError(f"{batch} samples at once are too few: a frame of this recipe takes {copies * (beside + 1)}")
    if not recipe.attention:

        def sampled(chunk: slice) -> torch.Tensor:
            return _sample_rows(base, first, second, noise, alphas[chunk], recipe, progress("frames"))

        return torch.cat(in_chunks(len(alphas), room, sampled, accelerator)).to(base.device)
    ends = torch.tensor([0.0, 1.0], dtype=alphas.dtype)
    inner = alphas[(alphas > 0) & (alphas < 1)]

    def sampled_with_ends(chunk: slice) -> torch.Tensor:
        return _sample_rows(base, first, second, noise, torch.cat([ends, inner[chunk]]), recipe, progress("frames"))

    parts = in_chunks(len(inner), room, sampled_with_ends, accelerator) or [sampled_with_ends(slice(0))]
    latents = torch.cat([parts[-1][:2], *(part[2:] for part in parts)]).to(base.device)
    found = dict(zip([*ends.tolist(), *inner.tolist()], latents, strict=True))
    return torch.stack([found[alpha] for alpha in alphas.tolist()])


def _sample_rows(
    base: Base,
    first: EncodedKeyframe,
    second: EncodedKeyframe,
    noise: torch.Tensor,
    alphas: torch.Tensor,
    recipe: Recipe,
    progress: Progress,
) -> torch.Tensor:
    """All rows together; with attention the first two are the endpoints."""
    start = slerp(noise[0], noise[1], alphas)
    if recipe.use_adain:
        start = adain(start, noise[0], noise[1], alphas)
    conditioning = Conditioning.lerp(first.of_frames, second.of_frames, alphas)
    adapters, weights = adapter_weights_at(first, second, alphas)
    with_guidance = recipe.guidance != 1
    if with_guidance:
        acting = [(*one.adapters, *one.style) for one in (first, second)]
        ends = adapted_conditioning(base, [recipe.negative] * 2, acting)
        negative = Conditioning.lerp(ends.take([0]), ends.take([1]), alphas)
        conditioning = Conditioning.stack([negative, conditioning])
        weights = torch.cat([weights, weights], dim=1)
    with ExitStack() as stack:
        stack.enter_context(mixed_adapters(base.denoiser, adapters, weights))
        stack.enter_context(cached_captions(base.cross_attention()))

        def prediction() -> Predict:
            predict = predictor(base, conditioning)
            return guided(predict, recipe.guidance, recipe.rescale) if with_guidance else predict

        predict, restarts = prediction(), list[int]()
        if recipe.attention and recipe.attention.until > 0:
            layers = base.self_attention(recipe.attention.blocks)
            endpoints = stack.enter_context(endpoint_attention(layers, alphas, recipe.attention.source))
            switch = min(recipe.steps, math.ceil(recipe.attention.until * recipe.steps))
            predict = in_first_steps(predict, prediction(), endpoints, falling_levels(base.path, recipe.steps), switch)
            restarts = [switch]
        return sample(start, predict, base.path, recipe.steps, progress, recipe.solver, restarts)


def adapter_weights_at(
    first: EncodedKeyframe, second: EncodedKeyframe, alphas: torch.Tensor
) -> tuple[list[Adapter], torch.Tensor]:
    """The adapters and styles of two keyframes, and their weights (adapters, F) at `alphas`. A shared one stays
    constant."""
    adapters, ends = mixing_weights([(*one.adapters, *one.style) for one in (first, second)])
    return adapters, (1 - alphas) * ends[:, :1] + alphas * ends[:, 1:]


def cross_fade(first: torch.Tensor, second: torch.Tensor, alphas: Iterable[float]) -> torch.Tensor:
    """The baseline: two pictures (3, H, W) mixed pixel by pixel, (F, 3, H, W)."""
    return lerp(first, second, torch.tensor(list(alphas)))
