import math

import pytest
import torch
from diffusers import DDIMScheduler

from pipeline.base.noise_path import Level, VariancePreserving
from tests.paths import CONFIG, PATHS, diffusion_path


@pytest.mark.parametrize("name", PATHS)
def test_a_prediction_is_split_into_what_it_was_made_from(name: str) -> None:
    """`split` undoes `add_noise` and `target`, at every time, also where x lies elsewhere than the prediction."""
    path = PATHS[name]
    clean, noise = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = path.levels(3)
    for level in levels[1:]:
        times = torch.tensor([level.time] * 3)
        x, target = path.add_noise(clean, noise, times), path.target(clean, noise, times)
        assert torch.allclose(x, level.a * clean + level.s * noise)
        pair = path.split(x, target, level)
        assert torch.allclose(pair.clean, clean) and torch.allclose(pair.noise, noise)
        elsewhere = levels[0]
        pair = path.split(elsewhere.a * clean + elsewhere.s * noise, target, level, x_at=elsewhere)
        assert torch.allclose(pair.clean, clean) and torch.allclose(pair.noise, noise)


def test_targets_by_hand() -> None:
    clean, noise = torch.tensor([[[[2.0]]]]), torch.tensor([[[[3.0]]]])
    abar = float(diffusion_path("epsilon").alphas_cumprod[500])
    v = math.sqrt(abar) * 3 - math.sqrt(1 - abar) * 2
    for name, time, expected in (("epsilon", 500, 3.0), ("v_prediction", 500, v), ("flow", 0.3, 1.0)):
        assert float(PATHS[name].target(clean, noise, torch.tensor([time]))) == pytest.approx(expected)


@pytest.mark.parametrize("name", PATHS)
def test_an_error_of_the_prediction_is_that_error_of_the_clean_picture(name: str) -> None:
    path = PATHS[name]
    level = path.level(path.time_at(0.4))
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    off = path.split(x, x + 1, level).clean - path.split(x, x, level).clean
    times = torch.tensor([level.time])
    snr, error = path.snr(times), path.clean_error_scale(times)
    assert float(error) == pytest.approx(float(off) ** 2)
    assert float(snr) == pytest.approx((level.a / level.s) ** 2)


def test_levels_lead_from_the_clean_end_to_the_last_timestep() -> None:
    path = diffusion_path("epsilon")
    levels = path.levels(4)
    assert [level.time for level in levels[1:]] == path.timesteps(4) and len(levels) == 5
    assert levels[0].a == pytest.approx(path.final_alpha_cumprod**0.5)
    assert all(level.a**2 + level.s**2 == pytest.approx(1) for level in levels)
    assert [level.s for level in levels] == sorted(level.s for level in levels)


def test_times_may_lie_between_timesteps() -> None:
    path = diffusion_path("v_prediction")
    whole, between = path.level(500), path.level(500.5)
    assert path.level(500.0) == Level(500.0, pytest.approx(whole.a), pytest.approx(whole.s))
    assert path.level(501).a < between.a < whole.a and between.a**2 + between.s**2 == pytest.approx(1)
    zero = VariancePreserving.from_scheduler_config({**CONFIG, "rescale_betas_zero_snr": True})
    assert math.isfinite(zero.level(998.5).a) and zero.level(999).a == pytest.approx(0, abs=1e-3)


def test_too_many_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="1001 steps"):
        diffusion_path("epsilon").timesteps(1001)


@pytest.mark.parametrize("steps", [1, 3, 7, 50, 999, 1000])
def test_timesteps_rise_and_stay_within_the_schedule(steps: int) -> None:
    timesteps = diffusion_path("epsilon").timesteps(steps)
    assert len(set(timesteps)) == steps and timesteps == sorted(timesteps)
    assert timesteps[0] >= 0 and timesteps[-1] <= 999


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 3, 20, 50, 30])
def test_timesteps_are_spaced_as_the_bases_own_scheduler_spaces_them(spacing: str, steps: int) -> None:
    config = {**CONFIG, "timestep_spacing": spacing}
    theirs = DDIMScheduler.from_config(config)
    theirs.set_timesteps(steps)
    ours = VariancePreserving.from_scheduler_config(config).timesteps(steps)
    assert ours == sorted(theirs.timesteps.tolist()) or (spacing, steps) == ("linspace", 1)
