"""Noise drawn anew between steps, that of ddim against diffusers' own and against Bayes' rule."""

import pytest
import torch

from pipeline.base.noise_path import Level, NoisePath, Pair
from pipeline.base.protocol import Base
from pipeline.editing.transfer import Transfer, Work, trail_to_noise, transferred
from pipeline.sampling.captions import sample_captions
from pipeline.sampling.consistency import Sampler
from pipeline.sampling.guidance import predictor
from pipeline.sampling.solver import ancestral_step, fresh_noise, sample
from tests.paths import PATHS, diffusion_path, scheduler_like
from tests.reference import random_adapters
from tests.sampling.test_solver import mixture

CAPTIONS = ["a red hill", "a blue lake"]
SEEDS = [5, 9]
TRAILING = diffusion_path("v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True)
ALL = {**PATHS, "trailing, from pure noise": TRAILING}


def noise_like(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fresh", [0.0, 0.36, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 9])
@torch.no_grad()
def test_it_is_the_square_of_diffusers_eta(tiny: Base, steps: int, fresh: float) -> None:
    captions, scheduler = tiny.condition(CAPTIONS), scheduler_like(tiny.path)
    ours = sample(noise_like(), predictor(tiny, captions), tiny.path, steps, solver="ddim", fresh=fresh, seeds=SEEDS)
    scheduler.set_timesteps(steps)
    theirs = noise_like()
    for number, timestep in enumerate(scheduler.timesteps):
        out = tiny.predict(theirs, torch.full((2,), int(timestep)), captions)
        # Theirs draws after the last step, too, which leaves noise in the picture.
        eta = fresh**0.5 if number < steps - 1 else 0.0
        drawn = fresh_noise(theirs, SEEDS, number) if eta else None
        theirs = scheduler.step(out, timestep, theirs, eta=eta, variance_noise=drawn).prev_sample
    assert torch.allclose(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_all_fresh_is_what_is_known_of_the_next_latents_given_these_and_the_picture(name: str) -> None:
    """By Bayes' rule from x_at = r x_to + noise: both precisions of x_to add up."""
    path = ALL[name]
    levels = path.levels(10)
    for to, at in zip(levels[1:-1], levels[2:], strict=True):
        ratio = at.a / to.a
        between = at.s**2 - (ratio * to.s) ** 2
        assert between > 0
        variance = 1 / (1 / to.s**2 + ratio**2 / between)
        clean, noise = torch.tensor(0.7).double(), torch.tensor(-1.3).double()
        x = at.a * clean + at.s * noise
        mean = variance * (to.a * clean / to.s**2 + ratio * x / between)
        for drawn in (0.0, 2.0):
            ours = ancestral_step(Pair(clean, noise), at, to, 1.0, torch.tensor(drawn).double())
            assert float(ours) == pytest.approx(float(mean + variance**0.5 * drawn), abs=1e-9)


@pytest.mark.parametrize("name", PATHS)
def test_errors_of_earlier_steps_go_with_the_old_noise(name: str) -> None:
    """From no noise at all, on an exact model of data that spreads: only fresh noise can find the spread again."""
    path: NoisePath = PATHS[name]
    start = torch.zeros(400, 3, 1, 1, dtype=torch.float64)
    given = {"steps": 100, "solver": "ddim", "seeds": range(400)}
    stuck = sample(start, mixture(path), path, **given)
    assert float(stuck.std(0).max()) < 1e-9
    found = sample(start, mixture(path), path, **given, fresh=1.0)[..., 0, 0]
    means = torch.tensor([[-1.2, 0.4, 0.3], [0.9, -0.8, 0.2], [0.3, 1.1, -0.9]], dtype=torch.float64)
    expected = means.T @ means / 3 - torch.outer(means.mean(0), means.mean(0)) + 0.16 * torch.eye(3)
    assert torch.allclose(found.mean(0), means.mean(0), atol=0.2)
    assert torch.allclose(torch.cov(found.T), expected, atol=0.2)


def test_nothing_is_drawn_after_the_last_step_or_for_none() -> None:
    asked: list[float] = []

    def predict(x: torch.Tensor, level: Level) -> torch.Tensor:
        asked.append(level.time)
        return x

    x = noise_like()
    plain = sample(x, predict, PATHS["flow"], 1, solver="ddim")
    assert torch.equal(plain, sample(x, predict, PATHS["flow"], 1, solver="ddim", fresh=1.0, seeds=SEEDS))
    plain = sample(x, predict, PATHS["flow"], 3, solver="ddim")
    assert torch.equal(plain, sample(x, predict, PATHS["flow"], 3, solver="ddim", seeds=SEEDS))
    assert not torch.allclose(plain, sample(x, predict, PATHS["flow"], 3, solver="ddim", fresh=0.1, seeds=SEEDS))
    assert len(asked) == 11
    with pytest.raises(ValueError, match="fresh noise needs ddim"):
        sample(x, predict, PATHS["flow"], 3, fresh=0.1, seeds=SEEDS)


@pytest.mark.parametrize("solver", ["ddim", "consistency"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_nothing_depends_on_what_it_is_batched_with(tiny: Base, guidance: float, solver: Sampler) -> None:
    """Samples and edits, with adapters and guidance: each its own fresh noise."""
    captions = tiny.condition(CAPTIONS)
    (adapter,) = random_adapters(tiny.denoiser, 1)
    adapters = [[(adapter, 0.5)], []]
    options = {"steps": 4, "guidance": guidance, "solver": solver, "fresh": 0.5}
    both = sample_captions(tiny, noise_like(), captions, adapters, seeds=SEEDS, **options)
    for row in range(2):
        alone = sample_captions(
            tiny, noise_like()[[row]], captions.take([row]), [adapters[row]], seeds=[SEEDS[row]], **options
        )
        assert torch.allclose(alone, both[[row]], atol=1e-3)  # of latents that a random base sends to 40
    others = sample_captions(tiny, noise_like(), captions, adapters, seeds=[1, 2], **options)
    assert not torch.allclose(both, others, atol=1e-3)
    transfer = Transfer(4, 0.6, "noise", guidance, solver=solver, fresh=0.5)
    trail = trail_to_noise(tiny, noise_like(1), captions, noise_like(2), transfer)
    whole = transferred(tiny, trail, captions, adapters, transfer, seeds=SEEDS)
    parts = transferred(tiny, trail, captions, adapters, transfer, Work(batch=1 if guidance == 1 else 2), seeds=SEEDS)
    assert torch.allclose(whole, parts, atol=1e-3)
    others = transferred(tiny, trail, captions, adapters, transfer, seeds=[1, 2])
    assert not torch.allclose(whole, others, atol=1e-3)
