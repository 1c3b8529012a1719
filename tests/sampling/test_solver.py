from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from pipeline.base.noise_path import Level, NoisePath, VariancePreserving
from pipeline.base.protocol import Base
from pipeline.sampling.guidance import predictor
from pipeline.sampling.solver import Predict, Solver, falling_levels, invert, sample, step_at
from tests.paths import CONFIG, PATHS, diffusion_path, scheduler_like
from tests.reference import ddim_sample, midpoint_rule, points

Model = Callable[[NoisePath], Predict]
SOLVERS: tuple[Solver, ...] = ("midpoint", "ddim")
# Up to the last timestep, so that twice as many steps are the same way cut more finely.
NESTED = {**PATHS, **{name: diffusion_path(name, timestep_spacing="trailing") for name in ("epsilon", "v_prediction")}}


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_ddim_equals_diffusers(tiny: Base, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 4, 8, 8, generator=generator)
    captions = tiny.condition(["a red hill", "a blue lake", ""])
    with torch.no_grad():
        ours = sample(noise, predictor(tiny, captions), tiny.path, steps, solver="ddim")
    slow = ddim_sample(tiny.denoiser, noise, captions["embedding"], scheduler_like(tiny.path), steps)
    assert torch.allclose(ours, slow, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 7])
@torch.no_grad()
def test_the_midpoint_rule_equals_the_slow_one_both_ways(tiny: Base, steps: int) -> None:
    tiny.denoiser.double()
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    caption = tiny.condition(["a red hill"]).to(torch.float64)["embedding"]

    def ours(x: torch.Tensor, level: Level) -> torch.Tensor:
        return tiny.denoiser(x, level.time, caption).sample

    way = points(tiny, steps)
    slow = midpoint_rule(tiny, start, lambda x, time: tiny.denoiser(x, time, caption).sample, way)
    assert torch.allclose(invert(start, ours, tiny.path, steps), slow, atol=1e-9)
    slow = midpoint_rule(tiny, start, lambda x, time: tiny.denoiser(x, time, caption).sample, way[::-1])
    assert torch.allclose(sample(start, ours, tiny.path, steps), slow, atol=1e-9)


def test_ddim_of_a_flow_is_eulers_method() -> None:
    path, steps = PATHS["flow"], 8
    noise = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = noise
    for number in range(steps, 0, -1):
        expected = expected - torch.sin(expected + number / steps) / steps
    ours = sample(noise, lambda x, level: torch.sin(x + level.time), path, steps, solver="ddim")
    assert torch.allclose(ours, expected, atol=1e-12)


def test_ddim_inversion_equals_diffusers_for_epsilon() -> None:
    inverse = DDIMInverseScheduler.from_config(DDIMScheduler(**CONFIG).config)
    inverse.set_timesteps(20)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = latents
    for timestep in inverse.timesteps:
        theirs = inverse.step(torch.tanh(theirs) * 0.3, timestep, theirs).prev_sample
    ours = invert(latents, lambda x, level: torch.tanh(x) * 0.3, diffusion_path("epsilon"), 20, solver="ddim")
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", PATHS)
def test_with_ddim_a_constant_prediction_inverts_exactly(name: str) -> None:
    """Where the prediction does not depend on the latents nothing is approximated: there and back is the identity."""
    generator = torch.Generator().manual_seed(2)
    latents, constant = torch.randn(2, 1, 4, 4, 4, generator=generator, dtype=torch.float64)
    noise = invert(latents, lambda x, level: constant, PATHS[name], 25, solver="ddim")
    assert torch.allclose(sample(noise, lambda x, level: constant, PATHS[name], 25, solver="ddim"), latents, atol=1e-10)


def test_evaluations_are_one_a_step_and_for_the_midpoint_rule_one_more() -> None:
    for solver, expected in (("midpoint", 9), ("ddim", 8)):
        calls: list[float] = []
        x = torch.zeros(1, 1, 1, 1)

        def predict(x: torch.Tensor, level: Level, calls: list[float] = calls) -> torch.Tensor:
            calls.append(level.time)
            return x

        sample(x, predict, PATHS["v_prediction"], 8, solver=solver)
        assert len(calls) == expected
        calls.clear()
        invert(x, predict, PATHS["v_prediction"], 8, solver=solver)
        assert len(calls) == expected and calls == sorted(calls)


def mixture(path: NoisePath) -> Predict:
    """The exact prediction for data of three Gaussians in three dimensions: x0 and e given x are known."""
    means = torch.tensor([[-1.2, 0.4, 0.3], [0.9, -0.8, 0.2], [0.3, 1.1, -0.9]], dtype=torch.float64)
    std = 0.4

    def predict(x: torch.Tensor, level: Level) -> torch.Tensor:
        a, s = level.a, level.s
        variance = a * a * std**2 + s * s
        off = x[:, None, :, 0, 0] - a * means
        weights = torch.softmax(-off.square().sum(-1) / (2 * variance), 1)[..., None]
        clean = (weights * (means + a * std**2 / variance * off)).sum(1)
        noise = (weights * (s / variance * off)).sum(1)
        c, d = path.target_coefficients(torch.tensor(a).double(), torch.tensor(s).double())
        return (c * clean + d * noise)[..., None, None]

    return predict


def gaussian_model(path: NoisePath, std: float) -> Predict:
    """The exact prediction for data N(0, std^2): every x is Gaussian, so the optimal x0 and e are known."""

    def predict(latents: torch.Tensor, level: Level) -> torch.Tensor:
        variance = level.a**2 * std**2 + level.s**2
        c, d = path.target_coefficients(torch.tensor(level.a).double(), torch.tensor(level.s).double())
        return (c * level.a * std**2 + d * level.s) / variance * latents

    return predict


@pytest.mark.parametrize("name", NESTED)
def test_halving_the_steps_quarters_the_midpoint_rules_error_and_halves_ddims(name: str) -> None:
    path = NESTED[name]
    predict = mixture(path)
    noise = torch.randn(64, 3, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = sample(noise, predict, path, 1000)

    def error(found: torch.Tensor) -> float:
        return float((found - exact).square().mean().sqrt())

    errors = {
        solver: [error(sample(noise, predict, path, steps, solver=solver)) for steps in (25, 50, 125)]
        for solver in SOLVERS
    }
    fine, coarse = errors["midpoint"], errors["ddim"]
    assert 3.2 < fine[0] / fine[1] < 4.2 and 4.7 < fine[1] / fine[2] < 6.5  # 2.5 squared is 6.25
    assert 1.7 < coarse[0] / coarse[1] < 2.2 and 2.2 < coarse[1] / coarse[2] < 2.8
    assert fine[0] < 0.1 * coarse[0]
    trips = [error(sample(invert(exact, predict, path, steps), predict, path, steps)) for steps in (25, 50)]
    assert trips[0] / trips[1] > 3.5, "the way back is another"


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", PATHS)
def test_a_round_trip_on_an_exact_model_comes_back_the_nearer_the_more_steps(name: str, solver: Solver) -> None:
    path = PATHS[name]
    predict = gaussian_model(path, std=0.5)
    latents = 0.5 * torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    errors = {}
    for steps in (10, 50, 100):
        there = invert(latents, predict, path, steps, solver=solver)
        back = sample(there, predict, path, steps, solver=solver)
        errors[steps] = float((back - latents).std() / latents.std())
    assert errors[10] > errors[50] > errors[100]
    assert errors[100] < (0.03 if solver == "ddim" else 1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", PATHS)
def test_inverted_noise_of_an_exact_model_has_unit_std(name: str, solver: Solver) -> None:
    path = PATHS[name]
    latents = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    noise = invert(latents, gaussian_model(path, std=1.0), path, 50, solver=solver)
    assert float(noise.std()) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("solver", SOLVERS)
def test_trailing_steps_begin_at_pure_noise_and_come_back_from_inversion(solver: Solver) -> None:
    """Also where the steps do not divide the schedule, and no step is as long as another."""
    path = diffusion_path("v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True)
    assert path.timesteps(30)[-1] == 999 and path.level(999).a == pytest.approx(0, abs=1e-3)
    clean = 0.5 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    predict = gaussian_model(path, std=0.5)
    back = sample(invert(clean, predict, path, 30, solver=solver), predict, path, 30, solver=solver)
    assert float((back - clean).square().mean().sqrt()) < (0.1 if solver == "ddim" else 0.01)


def test_a_step_that_starts_afresh_forgets_the_midpoint_before() -> None:
    """Where the prediction changes at a step, what was predicted before says nothing about it."""
    path = VariancePreserving.from_scheduler_config({**CONFIG, "prediction_type": "v_prediction"})
    levels = path.levels(8)
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def switched(x: torch.Tensor, level: Level) -> torch.Tensor:
        return torch.tanh(x) if level.time > levels[4].time else torch.cos(3 * x)

    fresh = sample(noise, switched, path, 8, restarts=[4])
    halfway = noise
    from pipeline.sampling.solver import _midpoint

    halfway = _midpoint(halfway, lambda x, level: torch.tanh(x), path, levels[:3:-1], iter)
    expected = _midpoint(halfway, lambda x, level: torch.cos(3 * x), path, levels[4::-1], iter)
    assert torch.allclose(fresh, expected, atol=1e-12)
    assert not torch.allclose(sample(noise, switched, path, 8), expected, atol=1e-3)


@pytest.mark.parametrize("path", [*NESTED.values(), diffusion_path("epsilon", set_alpha_to_one=True, steps_offset=0)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_is_known_by_the_level_at_which_it_asks(path: NoisePath, solver: Solver) -> None:
    """Also at a clean end without any noise, where midpoint and end have one time, 0."""
    levels, asked = falling_levels(path, 8, 5), list[int]()

    def predict(x: torch.Tensor, level: Level) -> torch.Tensor:
        asked.append(step_at(level, levels))
        return x

    sample(torch.ones(1, 1, 1, 1), predict, path, 8, solver=solver, taken=5)
    assert asked == ([0, 1, 2, 3, 4] if solver == "ddim" else [0, 0, 1, 2, 3, 4])
