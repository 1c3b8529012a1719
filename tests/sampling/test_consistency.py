"""Sampling in a few jumps, against diffusers' LCMScheduler and TCDScheduler."""

import pytest
import torch
from diffusers import LCMScheduler, TCDScheduler
from diffusers.schedulers import scheduling_lcm

from pipeline.base.noise_path import Level
from pipeline.base.protocol import Base
from pipeline.editing.transfer import Transfer, trail_to_noise, transferred
from pipeline.sampling.captions import sample_captions
from pipeline.sampling.consistency import consistency_levels, sample_consistently
from pipeline.sampling.solver import fresh_noise
from tests.paths import PATHS

CAPTIONS = ["a red hill", "a blue lake"]
SEEDS = [5, 9]


def noise_like(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def scheduler_of(base: Base, monkeypatch: pytest.MonkeyPatch) -> LCMScheduler:
    """diffusers' own, with our noise between its steps."""
    drawn = iter(range(100))
    monkeypatch.setattr(
        scheduling_lcm, "randn_tensor", lambda shape, **_: fresh_noise(torch.zeros(shape), SEEDS, next(drawn))
    )
    path = base.path
    return LCMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        prediction_type=path.prediction_type,
    )


@torch.no_grad()
def theirs(
    base: Base, scheduler: LCMScheduler, latents: torch.Tensor, steps: int, strength: float = 1.0
) -> torch.Tensor:
    """As their pipelines do it."""
    scheduler.set_timesteps(steps, original_inference_steps=50, strength=strength)
    captions = base.condition(CAPTIONS)
    for timestep in scheduler.timesteps:
        out = base.predict(latents, torch.full((2,), int(timestep)), captions)
        latents = scheduler.step(out, timestep, latents).prev_sample
    return latents


@pytest.mark.parametrize("steps", [2, 3, 4, 8])
def test_it_samples_as_diffusers_does(tiny: Base, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    options = {"steps": steps, "solver": "consistency", "seeds": SEEDS, "fresh": 1.0}
    ours = sample_captions(tiny, noise_like(), tiny.condition(CAPTIONS), **options)
    assert torch.allclose(ours, theirs(tiny, scheduler_of(tiny, monkeypatch), noise_like(), steps), atol=1e-5)


@pytest.mark.parametrize(("steps", "strength"), [(4, 0.5), (3, 0.9), (2, 0.04)])
def test_an_edit_is_diffusers_image_to_image(
    tiny: Base, monkeypatch: pytest.MonkeyPatch, steps: int, strength: float
) -> None:
    scheduler = scheduler_of(tiny, monkeypatch)
    scheduler.set_timesteps(steps, original_inference_steps=50, strength=strength)
    clean, noise = noise_like(1), noise_like(2)
    start = scheduler.add_noise(clean, noise, scheduler.timesteps[:1])
    transfer = Transfer(steps, strength, "noise", solver="consistency", fresh=1.0)
    captions = tiny.condition(CAPTIONS)
    assert transfer.steps_taken == steps
    trail = trail_to_noise(tiny, clean, captions, noise, transfer)
    assert torch.equal(trail[0], clean) and torch.allclose(trail[-1], start, atol=1e-6)
    ours = transferred(tiny, trail, captions, [()] * 2, transfer, seeds=SEEDS)
    assert torch.allclose(ours, theirs(tiny, scheduler, start, steps, strength), atol=1e-5)


@torch.no_grad()
def test_without_fresh_noise_the_steps_are_those_of_tcd_without_it(tiny: Base) -> None:
    """All but the last, after which TCDScheduler adds the noise of its first timestep."""
    path, steps = tiny.path, 4
    scheduler = TCDScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        prediction_type=path.prediction_type,
        clip_sample=False,
    )
    levels = consistency_levels(path, steps)
    # Its own choice rounds other ones to the grid than LCMScheduler does.
    scheduler.set_timesteps(timesteps=[int(level.time) for level in levels[:-1]], original_inference_steps=50)
    captions, expected, latents = tiny.condition(CAPTIONS), [], noise_like()
    for timestep in scheduler.timesteps:
        out = tiny.predict(latents, torch.full((2,), int(timestep)), captions)
        latents = scheduler.step(out, timestep, latents, eta=0.0).prev_sample
        expected.append(latents)
    made = []

    def keep(x: torch.Tensor, level: Level) -> torch.Tensor:
        made.append(x)
        return x

    sample_consistently(
        noise_like(),
        lambda x, level: tiny.predict(x, torch.full((2,), level.time), captions),
        path,
        levels,
        SEEDS,
        after=keep,
    )
    assert len(made) == steps
    for ours, other in zip(made[:-1], expected[:-1], strict=True):
        assert torch.allclose(ours, other, atol=1e-4)
    other = sample_captions(tiny, noise_like(), captions, steps=steps, solver="consistency", seeds=[1, 2])
    assert torch.equal(other, made[-1]), "no seed has a part in it"


@pytest.mark.parametrize("fresh", [0.0, 0.3, 1.0])
def test_fresh_noise_is_a_share_of_the_variance(fresh: float) -> None:
    """By a base that knows the clean picture: what goes on is its own noise and the drawn one, at unit variance."""
    path = PATHS["epsilon"]
    levels = consistency_levels(path, 2)
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(1, 4, 64, 64, generator=generator) for _ in range(2))
    start = levels[0].a * clean + levels[0].s * noise
    made = []

    def keep(x: torch.Tensor, level: Level) -> torch.Tensor:
        made.append((x - level.a * clean) / level.s if level.s else x)
        return x

    def predict(x: torch.Tensor, level: Level) -> torch.Tensor:
        return (x - level.a * clean) / level.s

    ended = sample_consistently(start, predict, path, levels, [7], after=keep, fresh=fresh)
    drawn = fresh_noise(clean, [7], 0)
    assert torch.allclose(made[0], (1 - fresh) ** 0.5 * noise + fresh**0.5 * drawn, atol=1e-4)
    assert float(made[0].std()) == pytest.approx(1, abs=0.02)
    assert torch.allclose(ended, clean, atol=1e-4)


def test_outside_a_mask_the_latents_stay(tiny: Base) -> None:
    captions = tiny.condition(CAPTIONS)
    transfer = Transfer(4, 0.6, "noise", solver="consistency")
    trail = trail_to_noise(tiny, noise_like(1), captions, noise_like(2), transfer)
    masks = torch.zeros(2, 1, 8, 8)
    masks[..., 4:] = 1
    made = transferred(tiny, trail, captions, [()] * 2, transfer, masks=masks, seeds=SEEDS)
    assert torch.equal(made[..., :4], trail[0][..., :4]) and not torch.allclose(made[..., 4:], trail[0][..., 4:])


def test_no_strength_is_no_change_and_inversion_is_refused(tiny: Base) -> None:
    captions, clean = tiny.condition(CAPTIONS), noise_like(1)
    none = Transfer(4, 0.0, "noise", solver="consistency")
    trail = trail_to_noise(tiny, clean, captions, noise_like(2), none)
    assert torch.equal(transferred(tiny, trail, captions, [()] * 2, none, seeds=SEEDS), clean)
    with pytest.raises(ValueError, match="has no inversion"):
        trail_to_noise(tiny, clean, captions, clean, Transfer(4, 0.5, "inversion", solver="consistency"))
    with pytest.raises(ValueError, match="3 steps asked of 2"):
        consistency_levels(tiny.path, 3, 0.04)


def test_levels_of_a_flow_fall_to_the_clean_end() -> None:
    times = [level.time for level in consistency_levels(PATHS["flow"], 4)]
    assert times == pytest.approx([1.0, 0.76, 0.5, 0.26, 0.0])
