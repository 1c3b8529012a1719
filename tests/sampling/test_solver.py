import math

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from pipeline.base.noise_path import Level, NoisePath, VariancePreserving
from pipeline.base.protocol import Base
from pipeline.sampling.captions import predictor
from pipeline.sampling.solver import invert, sample
from tests.paths import CONFIG, PATHS, diffusion_path, scheduler_like
from tests.reference import ddim_sample


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_sampling_equals_diffusers(tiny: Base, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 4, 8, 8, generator=generator)
    captions = tiny.condition(["a red hill", "a blue lake", ""])
    with torch.no_grad():
        ours = sample(noise, predictor(tiny, captions), tiny.path, steps)
    slow = ddim_sample(tiny.denoiser, noise, captions["embedding"], scheduler_like(tiny.path), steps)
    assert torch.allclose(ours, slow, atol=2e-4, rtol=1e-4)


def test_sampling_a_flow_is_eulers_method() -> None:
    path, steps = PATHS["flow"], 8
    noise = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = noise
    for number in range(steps, 0, -1):
        expected = expected - torch.sin(expected + number / steps) / steps
    ours = sample(noise, lambda x, level: torch.sin(x + level.time), path, steps)
    assert torch.allclose(ours, expected, atol=1e-12)


def test_inversion_equals_diffusers_for_epsilon() -> None:
    inverse = DDIMInverseScheduler.from_config(DDIMScheduler(**CONFIG).config)
    inverse.set_timesteps(20)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = latents
    for timestep in inverse.timesteps:
        theirs = inverse.step(torch.tanh(theirs) * 0.3, timestep, theirs).prev_sample
    ours = invert(latents, lambda x, level: torch.tanh(x) * 0.3, diffusion_path("epsilon"), 20)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", PATHS)
def test_a_constant_prediction_inverts_exactly(name: str) -> None:
    """Where the prediction does not depend on the latents nothing is approximated: there and back is the identity."""
    generator = torch.Generator().manual_seed(2)
    latents, constant = torch.randn(2, 1, 4, 4, 4, generator=generator, dtype=torch.float64)
    noise = invert(latents, lambda x, level: constant, PATHS[name], 25)
    assert torch.allclose(sample(noise, lambda x, level: constant, PATHS[name], 25), latents, atol=1e-10)


def gaussian_model(path: NoisePath, std: float):
    """The exact prediction for data N(0, std^2): every x is Gaussian, so the optimal x0 and e are known."""

    def predict(latents: torch.Tensor, level: Level) -> torch.Tensor:
        variance = level.a**2 * std**2 + level.s**2
        clean = level.a * std**2 / variance * latents
        noise = level.s / variance * latents
        return path.target(clean, noise, torch.tensor([level.time]))

    return predict


@pytest.mark.parametrize("name", PATHS)
def test_a_round_trip_on_an_exact_model_comes_back_the_nearer_the_more_steps(name: str) -> None:
    path = PATHS[name]
    predict = gaussian_model(path, std=0.5)
    latents = 0.5 * torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    errors = {}
    for steps in (10, 50, 100):
        there_and_back = sample(invert(latents, predict, path, steps), predict, path, steps)
        errors[steps] = float((there_and_back - latents).std() / latents.std())
    assert errors[10] > errors[50] > errors[100]
    assert errors[100] < 0.03


@pytest.mark.parametrize("name", PATHS)
def test_inverted_noise_of_an_exact_model_has_unit_std(name: str) -> None:
    path = PATHS[name]
    latents = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    noise = invert(latents, gaussian_model(path, std=1.0), path, 50)
    assert float(noise.std()) == pytest.approx(1, abs=0.06)


def test_trailing_steps_begin_at_pure_noise_and_come_back_from_inversion() -> None:
    """Also where the steps do not divide the schedule, and no step is as long as another."""
    config = {
        **CONFIG,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
    }
    path = VariancePreserving.from_scheduler_config(config)
    assert path.timesteps(30)[-1] == 999 and path.level(999).a == pytest.approx(0, abs=1e-3)
    clean = 0.5 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    predict = gaussian_model(path, std=0.5)
    back = sample(invert(clean, predict, path, 30), predict, path, 30)
    assert float((back - clean).square().mean().sqrt()) < 0.1
    assert math.isfinite(float(back.std()))
