"""Slow, obvious implementations that the fast ones must equal. Nothing here is shared with the package's own maths."""

import copy
from collections.abc import Callable, Sequence

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
                sample_one(unet, self.noises[-1], keyframe.conditioning["embedding"][0], recipe, scheduler)

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
            steps = sum(step < how.until * recipe.steps for step in range(recipe.steps))
            calls = steps * (2 if recipe.guidance != 1 else 1)
            names = iter(zip(*(store.values() for store in self.stores), strict=True))
            watched(unet, recipe, lambda: Using(*next(names), alpha, how.source, calls))
        noise = slerp_by_hand(self.noises[0], self.noises[1], alpha)
        if recipe.use_adain:
            noise = adain_by_hand(noise, self.noises[0], self.noises[1], alpha)
        one, two = (keyframe.conditioning["embedding"][0] for keyframe in (first, second))
        caption = (1 - alpha) * one + alpha * two
        return sample_one(unet, noise, caption, recipe, self.scheduler)


def watched(unet: nn.Module, recipe: Recipe, make: Callable[[], AttnProcessor2_0]) -> dict[str, AttnProcessor2_0]:
    """Give each self-attention of the chosen blocks a processor of its own; those by name."""
    chosen = {
        name: make()
        for name in unet.attn_processors
        if recipe.attention and name.endswith("attn1.processor") and name.startswith(recipe.attention.blocks)
    }
    unet.set_attn_processor({**unet.attn_processors, **chosen})
    return chosen


def invert_one(unet: nn.Module, keyframe: EncodedKeyframe, base: Base, recipe: Recipe) -> torch.Tensor:
    """Clean latents of one keyframe to its noise, each step solved for its noisy end by hand."""
    schedule, steps = base.path, recipe.inversion_steps
    stride = len(schedule) // steps
    timesteps = [index * stride + schedule.steps_offset for index in range(steps)]
    latents = keyframe.latents[None]
    for index, timestep in enumerate(timesteps):
        clean = schedule.final_alpha_cumprod if index == 0 else float(schedule.alphas_cumprod[timesteps[index - 1]])
        noisy = float(schedule.alphas_cumprod[timestep])

        def solved(at: torch.Tensor, latents=latents, clean=clean, noisy=noisy, timestep=timestep) -> torch.Tensor:
            """x_n = a_n x_0 + b_n e from x_clean = a_c x_0 + b_c e, with what is predicted at `at`."""
            out = unet(at, timestep, keyframe.conditioning["embedding"]).sample
            a_c, b_c, a_n, b_n = clean**0.5, (1 - clean) ** 0.5, noisy**0.5, (1 - noisy) ** 0.5
            if schedule.prediction_type == "epsilon":
                return a_n * (latents - b_c * out) / a_c + b_n * out
            # v = a_n e - b_n x_0 and x_clean = a_c x_0 + b_c e: two equations for x_0 and e.
            x_0 = (a_n * latents - b_c * out) / (a_n * a_c + b_n * b_c)
            noise = (b_n * latents + a_c * out) / (a_n * a_c + b_n * b_c)
            return a_n * x_0 + b_n * noise

        found = solved(latents)
        for _ in range(recipe.fixed_point.iterations if recipe.fixed_point else 0):
            moved = found + recipe.fixed_point.relaxation * (solved(found) - found)
            distance = float((moved - found).square().mean().sqrt())
            found = moved
            if distance < recipe.fixed_point.tolerance:
                break
        latents = found
    return latents[0]


def sample_one(
    unet: nn.Module, noise: torch.Tensor, caption: torch.Tensor, recipe: Recipe, scheduler: DDIMScheduler
) -> torch.Tensor:
    """One latent through diffusers' own DDIM scheduler; under guidance the negative caption first, then the caption."""
    scheduler.set_timesteps(recipe.steps)
    latents = noise[None]
    for timestep in scheduler.timesteps:
        if recipe.guidance == 1:
            prediction = unet(latents, timestep, caption[None]).sample
        else:
            without = unet(latents, timestep, recipe.negative["embedding"]).sample
            given = unet(latents, timestep, caption[None]).sample
            prediction = without + recipe.guidance * (given - without)
            back = prediction * given.std() / prediction.std()
            prediction = recipe.rescale * back + (1 - recipe.rescale) * prediction
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    return latents[0]


def adain_by_hand(noise: torch.Tensor, first: torch.Tensor, second: torch.Tensor, alpha: float) -> torch.Tensor:
    """Channel by channel."""
    channels = []
    for own, one, two in zip(noise, first, second, strict=True):
        mean = (1 - alpha) * one.mean() + alpha * two.mean()
        std = (1 - alpha) * one.std() + alpha * two.std()
        channels.append((own - own.mean()) / own.std() * std + mean)
    return torch.stack(channels)
