"""Slow, obvious implementations that the fast ones must equal. Nothing here is shared with the package's own maths."""

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn

from pipeline.adapters.mixing import Adapter, WeightedAdapter
from pipeline.base.protocol import Base
from pipeline.morphing.engine import EncodedKeyframe, Recipe


def random_adapters(unet: nn.Module, count: int, rank: int = 2) -> list[Adapter]:
    """Adapters on all attention layers, both factors random; the same ones every time."""
    adapters = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        factors = {
            name: (
                0.3 * torch.randn(rank, module.in_features, generator=generator).to(module.weight),
                0.3 * torch.randn(module.out_features, rank, generator=generator).to(module.weight),
            )
            for name, module in unet.named_modules()
            if isinstance(module, nn.Linear) and ".attn" in name
        }
        adapters.append(Adapter(factors, scale=1.5 - 0.25 * number))
    return adapters


def merged(unet: nn.Module, adapters: Sequence[WeightedAdapter]) -> nn.Module:
    """A copy of a UNet whose weights really are W + sum_i weight_i scale_i B_i A_i."""
    changed = copy.deepcopy(unet)
    for adapter, weight in adapters:
        for name, (down, up) in adapter.factors.items():
            changed.get_submodule(name).weight.data += weight * adapter.scale * (up @ down)
    return changed


@torch.no_grad()
def ddim_sample(unet, noise, conditioning, scheduler: DDIMScheduler, steps: int):
    """diffusers' own DDIM scheduler, one picture at a time."""
    results = []
    for one, caption in zip(noise, conditioning, strict=True):
        scheduler.set_timesteps(steps)
        latents = one[None]
        for timestep in scheduler.timesteps:
            prediction = unet(latents, timestep, caption[None]).sample
            latents = scheduler.step(prediction, timestep, latents).prev_sample
        results.append(latents)
    return torch.cat(results)


def repaced_alphas(alphas: torch.Tensor, distances: torch.Tensor, frames: int) -> torch.Tensor:
    """Alphas (frames,) at which the way measured in a first pass is equally long between neighbours.

    As DiffMorpher does (Zhang et al. 2024, section 4.4). alphas: (n,) of the first pass; distances: (n - 1,) between
    neighbours there, none of them zero.
    """
    way = torch.cat([torch.zeros(1, dtype=torch.float64), distances.double().cumsum(0)])
    wanted = torch.linspace(0, 1, frames, dtype=torch.float64) * way[-1]
    after = torch.searchsorted(way, wanted, right=True).clamp(1, len(way) - 1)
    share = (wanted - way[after - 1]) / (way[after] - way[after - 1])
    found = torch.lerp(alphas.double()[after - 1], alphas.double()[after], share.clamp(0, 1))
    found[0], found[-1] = 0, 1
    return found


def slerp_by_hand(a: torch.Tensor, b: torch.Tensor, alpha: float) -> torch.Tensor:
    """Shoemake's formula, written for one alpha."""
    angle = torch.arccos((a * b).sum() / a.norm() / b.norm())
    return (torch.sin((1 - alpha) * angle) * a + torch.sin(alpha * angle) * b) / torch.sin(angle)


class Storing(AttnProcessor2_0):
    """Keeps what self-attention is made from: its inputs, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def __call__(self, attn, hidden_states, *given, **named):
        self.stored.append((hidden_states, attn.to_k(hidden_states), attn.to_v(hidden_states)))
        return super().__call__(attn, hidden_states, *given, **named)


class Using(AttnProcessor2_0):
    """Self-attention of a frame at `alpha` from what was stored of its endpoints, call by call."""

    def __init__(self, first: Storing, second: Storing, alpha: float, source: str, calls: int) -> None:
        super().__init__()
        self.pairs = list(zip(first.stored, second.stored, strict=True))[:calls]
        self.alpha, self.source = alpha, source

    def __call__(self, attn, hidden_states, *given, **named):
        if not self.pairs:
            return super().__call__(attn, hidden_states, *given, **named)
        one, two = self.pairs.pop(0)
        between = [(1 - self.alpha) * a + self.alpha * b for a, b in zip(one, two, strict=True)]
        if self.source == "inputs":
            return super().__call__(attn, hidden_states, between[0])
        heads = attn.heads
        query, key, value = (
            part.reshape(*part.shape[:2], heads, -1).transpose(1, 2)
            for part in (attn.to_q(hidden_states), *between[1:])
        )
        weights = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1)
        return attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2))


class FrameByFrame:
    """A morph as a paper would state it.

    One latent at a time; for each frame the weights are merged anew, and the endpoints' attention inputs, stored over
    all their steps, are read back. noises: (2, C, h, w), inverted.
    """

    @torch.no_grad()
    def __init__(
        self, base: Base, first: EncodedKeyframe, second: EncodedKeyframe, recipe: Recipe, scheduler: DDIMScheduler
    ) -> None:
        self.base, self.first, self.second, self.recipe, self.scheduler = base, first, second, recipe, scheduler
        self.noises, self.stores = [], []
        for keyframe in (first, second):
            unet = merged(base.denoiser, keyframe.adapters)
            self.noises.append(invert_one(unet, keyframe, base, recipe))
            if recipe.attention:
                self.stores.append(watched(unet, recipe, Storing))
                sample_one(unet, self.noises[-1], keyframe.conditioning["embedding"][0], base, recipe, scheduler)

    @torch.no_grad()
    def frames(self, alphas: Sequence[float]) -> torch.Tensor:
        """Clean latents (F, C, h, w)."""
        return torch.stack([self.frame(alpha) for alpha in alphas])

    def frame(self, alpha: float) -> torch.Tensor:
        """Clean latents (C, h, w) of one frame."""
        first, second, recipe = self.first, self.second, self.recipe
        near = [(adapter, (1 - alpha) * weight) for adapter, weight in first.adapters]
        far = [(adapter, alpha * weight) for adapter, weight in second.adapters]
        unet = merged(self.base.denoiser, [*near, *far])
        if recipe.attention:
            how = recipe.attention
            evaluations = attended(recipe) + (1 if recipe.solver == "midpoint" else 0)
            calls = evaluations * (2 if recipe.guidance != 1 else 1)
            names = iter(zip(*(store.values() for store in self.stores), strict=True))
            watched(unet, recipe, lambda: Using(*next(names), alpha, how.source, calls))
        noise = slerp_by_hand(self.noises[0], self.noises[1], alpha)
        if recipe.use_adain:
            noise = adain_by_hand(noise, self.noises[0], self.noises[1], alpha)
        one, two = (keyframe.conditioning["embedding"][0] for keyframe in (first, second))
        caption = (1 - alpha) * one + alpha * two
        return sample_one(unet, noise, caption, self.base, recipe, self.scheduler)


def watched(unet: nn.Module, recipe: Recipe, make: Callable[[], AttnProcessor2_0]) -> dict[str, AttnProcessor2_0]:
    """Give each self-attention of the chosen blocks a processor of its own; those by name."""
    chosen = {
        name: make()
        for name in unet.attn_processors
        if recipe.attention and name.endswith("attn1.processor") and name.startswith(recipe.attention.blocks)
    }
    unet.set_attn_processor({**unet.attn_processors, **chosen})
    return chosen


Point = tuple[float, float, float]
"""A timestep, maybe between two of the table, with its a and s."""


def points(base: Base, steps: int) -> list[Point]:
    """The clean end, which counts as timestep 0, and each step's noisy end, spaced as `leading` says."""
    path = base.path
    stride = len(path) // steps
    clean = (0.0, path.final_alpha_cumprod**0.5, (1 - path.final_alpha_cumprod) ** 0.5)
    return [clean, *(point_at(base, index * stride + path.steps_offset) for index in range(steps))]


def point_at(base: Base, timestep: int) -> Point:
    abar = float(base.path.alphas_cumprod[timestep])
    return timestep, abar**0.5, (1 - abar) ** 0.5


def between(base: Base, one: Point, other: Point) -> Point:
    """Halfway by angle, where a is its cosine and s its sine; the timestep found by walking along the table."""
    angle = (math.acos(one[1]) + math.acos(other[1])) / 2
    angles = [math.acos(float(abar) ** 0.5) for abar in base.path.alphas_cumprod]
    low = max(0, sum(known < angle for known in angles) - 1)
    share = (angle - angles[low]) / (angles[low + 1] - angles[low])
    return low + min(max(share, 0.0), 1.0), math.cos(angle), math.sin(angle)


def pair_of(base: Base, x: torch.Tensor, out: torch.Tensor, at: Point) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean latents and noise that a prediction for x means."""
    _, a, s = at
    if base.path.prediction_type == "epsilon":
        return (x - s * out) / a, out
    return a * x - s * out, s * x + a * out


def moved(x: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor], at: Point, to: Point) -> torch.Tensor:
    return x + (to[1] - at[1]) * pair[0] + (to[2] - at[2]) * pair[1]


def midpoint_rule(
    base: Base,
    x: torch.Tensor,
    predict: Callable[[torch.Tensor, float], torch.Tensor],
    way: list[Point],
    fresh: int = 0,
) -> torch.Tensor:
    """Along the way, each step's midpoint reached with the pair of the midpoint before. fresh: a step that has none."""
    pair = None
    for number in range(len(way) - 1):
        at, to = way[number], way[number + 1]
        if number in (0, fresh):
            pair = pair_of(base, x, predict(x, at[0]), at)
        middle = between(base, at, to)
        there = moved(x, pair, at, middle)
        pair = pair_of(base, there, predict(there, middle[0]), middle)
        x = moved(x, pair, at, to)
    return x


def invert_one(unet: nn.Module, keyframe: EncodedKeyframe, base: Base, recipe: Recipe) -> torch.Tensor:
    """Clean latents of one keyframe to its noise."""
    way = points(base, recipe.inversion_steps)
    latents, caption = keyframe.latents[None], keyframe.conditioning["embedding"]
    if recipe.solver == "midpoint":
        return midpoint_rule(base, latents, lambda x, time: unet(x, time, caption).sample, way)[0]
    for at, to in pairwise(way):  # each step solved for its noisy end by hand
        out = unet(latents, to[0], caption).sample
        (_, a_c, s_c), (_, a_n, s_n) = at, to
        if base.path.prediction_type == "epsilon":
            latents = a_n * (latents - s_c * out) / a_c + s_n * out
        else:
            # v = a_n e - s_n x_0 and x_clean = a_c x_0 + s_c e: two equations for x_0 and e.
            x_0 = (a_n * latents - s_c * out) / (a_n * a_c + s_n * s_c)
            noise = (s_n * latents + a_c * out) / (a_n * a_c + s_n * s_c)
            latents = a_n * x_0 + s_n * noise
    return latents[0]


def sample_one(
    unet: nn.Module, noise: torch.Tensor, caption: torch.Tensor, base: Base, recipe: Recipe, scheduler: DDIMScheduler
) -> torch.Tensor:
    """One latent by hand, or through diffusers' own DDIM scheduler; under guidance the negative caption first."""

    def predict(latents: torch.Tensor, timestep: float) -> torch.Tensor:
        if recipe.guidance == 1:
            return unet(latents, timestep, caption[None]).sample
        without = unet(latents, timestep, base.condition([recipe.negative])["embedding"].to(latents)).sample
        given = unet(latents, timestep, caption[None]).sample
        prediction = without + recipe.guidance * (given - without)
        back = prediction * given.std() / prediction.std()
        return recipe.rescale * back + (1 - recipe.rescale) * prediction

    if recipe.solver == "midpoint":
        return midpoint_rule(base, noise[None], predict, points(base, recipe.steps)[::-1], attended(recipe))[0]
    scheduler.set_timesteps(recipe.steps)
    latents = noise[None]
    for timestep in scheduler.timesteps:
        latents = scheduler.step(predict(latents, timestep), timestep, latents).prev_sample
    return latents[0]


def attended(recipe: Recipe) -> int:
    """The number of first steps in which frames look at their endpoints."""
    if not recipe.attention:
        return 0
    return sum(step < recipe.attention.until * recipe.steps for step in range(recipe.steps))


def adain_by_hand(noise: torch.Tensor, first: torch.Tensor, second: torch.Tensor, alpha: float) -> torch.Tensor:
    """Channel by channel."""
    channels = []
    for own, one, two in zip(noise, first, second, strict=True):
        mean = (1 - alpha) * one.mean() + alpha * two.mean()
        std = (1 - alpha) * one.std() + alpha * two.std()
        channels.append((own - own.mean()) / own.std() * std + mean)
    return torch.stack(channels)
