import math

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from pipeline.base.noise_path import NoiseSchedule
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.sampling.solver import invert, sample
from tests.reference import ddim_sample

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def schedule_of(prediction_type: str) -> NoiseSchedule:
    return NoiseSchedule.from_scheduler_config({**CONFIG, "prediction_type": prediction_type})


def scheduler_like(schedule: NoiseSchedule) -> DDIMScheduler:
    return DDIMScheduler(**CONFIG, prediction_type=schedule.prediction_type)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_sampling_equals_diffusers(tiny: StableDiffusion, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 4, 8, 8, generator=generator)
    captions = tiny.condition(["a red hill", "a blue lake", ""])
    with torch.no_grad():
        ours = sample(noise, lambda x, t: tiny.predict(x, torch.full((len(x),), t), captions), tiny.schedule, steps)
    slow = ddim_sample(tiny.unet, noise, captions, scheduler_like(tiny.schedule), steps)
    assert torch.allclose(ours, slow, atol=2e-4, rtol=1e-4)


def test_inversion_equals_diffusers_for_epsilon() -> None:
    schedule = schedule_of("epsilon")
    inverse = DDIMInverseScheduler.from_config(DDIMScheduler(**CONFIG).config)
    inverse.set_timesteps(20)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = latents
    for timestep in inverse.timesteps:
        theirs = inverse.step(torch.tanh(theirs) * 0.3, timestep, theirs).prev_sample
    ours = invert(latents, lambda x, t: torch.tanh(x) * 0.3, schedule, 20)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_constant_prediction_inverts_exactly(prediction_type: str) -> None:
    """Where the prediction does not depend on the latents nothing is approximated: there and back is the identity."""
    schedule = schedule_of(prediction_type)
    generator = torch.Generator().manual_seed(2)
    latents, constant = torch.randn(2, 1, 4, 4, 4, generator=generator, dtype=torch.float64)
    noise = invert(latents, lambda x, t: constant, schedule, 25)
    assert torch.allclose(sample(noise, lambda x, t: constant, schedule, 25), latents, atol=1e-10)


def gaussian_model(schedule: NoiseSchedule, std: float):
    """The exact prediction for data N(0, std^2): every x_t is Gaussian, so the optimal predictions are known."""

    def predict(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        alpha = schedule.alpha_cumprod(timestep)
        variance = alpha * std**2 + 1 - alpha
        clean = math.sqrt(alpha) * std**2 / variance * latents
        noise = math.sqrt(1 - alpha) / variance * latents
        if schedule.prediction_type == "epsilon":
            return noise
        return math.sqrt(alpha) * noise - math.sqrt(1 - alpha) * clean

    return predict


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_round_trip_on_an_exact_model_comes_back_the_nearer_the_more_steps(prediction_type: str) -> None:
    schedule = schedule_of(prediction_type)
    predict = gaussian_model(schedule, std=0.5)
    latents = 0.5 * torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    errors = {}
    for steps in (10, 50, 100):
        there_and_back = sample(invert(latents, predict, schedule, steps), predict, schedule, steps)
        errors[steps] = float((there_and_back - latents).std() / latents.std())
    assert errors[10] > errors[50] > errors[100]
    assert errors[100] < 0.03


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_inverted_noise_of_an_exact_model_has_unit_std(prediction_type: str) -> None:
    schedule = schedule_of(prediction_type)
    latents = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    noise = invert(latents, gaussian_model(schedule, std=1.0), schedule, 50)
    assert float(noise.std()) == pytest.approx(1, abs=0.06)


def test_too_many_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="1001 steps"):
        schedule_of("epsilon").timesteps(1001)


@pytest.mark.parametrize("steps", [1, 3, 7, 50, 999, 1000])
def test_timesteps_rise_and_stay_within_the_schedule(steps: int) -> None:
    timesteps = schedule_of("epsilon").timesteps(steps)
    assert len(set(timesteps)) == steps and timesteps == sorted(timesteps)
    assert timesteps[0] >= 0 and timesteps[-1] <= 999


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 3, 20, 50, 30])
def test_timesteps_are_spaced_as_the_bases_own_scheduler_spaces_them(spacing: str, steps: int) -> None:
    config = {**CONFIG, "timestep_spacing": spacing}
    theirs = DDIMScheduler.from_config(config)
    theirs.set_timesteps(steps)
    ours = NoiseSchedule.from_scheduler_config(config).timesteps(steps)
    assert ours == sorted(theirs.timesteps.tolist()) or (spacing, steps) == ("linspace", 1)


def test_trailing_steps_begin_at_pure_noise_and_come_back_from_inversion() -> None:
    """Also where the steps do not divide the schedule, and no step is as long as another."""
    config = {
        **CONFIG,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
    }
    schedule = NoiseSchedule.from_scheduler_config(config)
    assert schedule.timesteps(30)[-1] == 999 and schedule.alpha_cumprod(999) == pytest.approx(0, abs=1e-6)
    clean = 0.5 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    predict = gaussian_model(schedule, std=0.5)
    back = sample(invert(clean, predict, schedule, 30), predict, schedule, 30)
    assert float((back - clean).square().mean().sqrt()) < 0.1
