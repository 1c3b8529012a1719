"""The regulariser of Smooth Diffusion: by finite differences, the same for the noise and v, its moving mean by hand."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.base.conditioning import Conditioning
from pipeline.base.posterior import keyed_seed
from pipeline.base.protocol import Base
from pipeline.training.denoising import denoising_errors
from pipeline.training.moving_means import DECAY, MovingMeans
from pipeline.training.objective import Trained
from pipeline.training.pack import AdapterPack
from pipeline.training.smoothness import Smoothness, moves_and_errors
from tests.paths import diffusion_path
from tests.tiny import caption_of, in_double
from tests.training.jobs import Fresh, trained
from tests.training.settings import SETTINGS
from tests.training.test_consistency import a_batch

SMOOTH = SETTINGS.model_copy(update={"objective": "smooth", "smooth_weight": 3.0})
EMPTY = caption_of(torch.zeros(1, 64, 16))


@pytest.fixture
def double(fresh_tiny: Fresh) -> Base:
    return in_double(fresh_tiny())


def given(base: Base) -> Trained:
    return Trained(base, EMPTY, nullcontext)


def captions(count: int) -> torch.Tensor:
    return torch.randn(count, 64, 16, generator=torch.Generator().manual_seed(9)).double()


def clean_for(base: Base, batch: object, noise: torch.Tensor) -> torch.Tensor:
    """x0 that the base sees for a noise, in alphas and sigmas."""
    a, s = (part.view(-1, 1, 1, 1) for part in base.path.at(batch.times))
    x = a * batch.clean + s * noise
    out = base.predict(x, batch.times, batch.conditioning)
    return (x - s * out) / a if base.path.prediction_type == "epsilon" else a * x - s * out


def test_how_far_pictures_move_is_the_derivative_by_the_noise(double: Base) -> None:
    """Each element's, by central differences, of the sum of x0 along the direction that the seed draws."""
    batch = a_batch(double.path, captions(2), [0.2, 0.8])
    moves, errors = moves_and_errors(given(double), batch)
    assert torch.allclose(errors, denoising_errors(double, batch), atol=1e-12)
    _, s = double.path.at(batch.times)
    step = 1e-5
    with torch.no_grad():
        for row in range(2):
            generator = torch.Generator().manual_seed(keyed_seed("direction", batch.seeds[row]))
            direction = torch.randn(4, 8, 8, generator=generator).double() * s[row] / 16  # the root of 4 x 8 x 8
            along = step * torch.eye(256).double().view(256, 4, 8, 8)
            alike = batch.take(torch.full((256,), row))
            ends = [
                (clean_for(double, alike, alike.noise + sign * along) * direction).flatten(1).sum(1) for sign in (1, -1)
            ]
            derivative = (ends[0] - ends[1]) / (2 * step)
            assert float(moves[row]) == pytest.approx(float(derivative.norm()), rel=1e-5)


def test_the_regularisers_gradient_is_that_of_finite_differences(double: Base) -> None:
    """Through the second derivative, attention included, to the factors of an adapter."""
    pack = AdapterPack(double, [5], SMOOTH)
    pack.up.copy_(0.3 * torch.randn(pack.up.shape, generator=torch.Generator().manual_seed(4)))
    batch, means = a_batch(double.path, captions(2), [0.3, 0.7]), torch.tensor([0.4, 0.9]).double()
    objective = Smoothness(3.0)
    with pack.attached():
        plain = denoising_errors(double, batch)
        losses = objective(given(double), batch, means)
        moves = losses.observed
        assert moves is not None and torch.allclose(losses.values, plain + 3.0 * (moves - means).square())
        losses.values.sum().backward()
        down, up = pack.down_grad.clone(), pack.up_grad.clone()
        generator = torch.Generator().manual_seed(6)
        for values, gradient in ((pack.down, down), (pack.up, up)):
            along = torch.randn(values.shape, generator=generator).double()
            along /= along.norm()
            ends = []
            for sign in (1, -1):
                values += sign * 1e-5 * along
                ends.append(float(objective(given(double), batch, means).values.detach().sum()))
                values -= sign * 1e-5 * along
            assert float((gradient * along).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


def test_a_network_for_v_moves_as_the_same_one_for_the_noise(double: Base) -> None:
    epsilon = replace(double, path=diffusion_path("epsilon"))  # type: ignore[type-var]

    class AsV:
        path = diffusion_path("v_prediction")

        def predict(self, x: torch.Tensor, times: torch.Tensor, told: Conditioning) -> torch.Tensor:
            a, s = (part.view(-1, 1, 1, 1) for part in self.path.at(times))
            return (epsilon.predict(x, times, told) - s * x) / a

    batch = a_batch(epsilon.path, captions(3), [0.1, 0.5, 0.9])
    one, other = (moves_and_errors(given(base), batch)[0] for base in (epsilon, AsV()))  # type: ignore[arg-type]
    assert torch.allclose(one, other, rtol=1e-9) and float(one.min()) > 0


def test_without_weight_and_in_the_first_step_it_is_plain_denoising(double: Base) -> None:
    batch = a_batch(double.path, captions(2), [0.3, 0.7])
    plain = denoising_errors(double, batch)
    for losses in (
        Smoothness(0.0)(given(double), batch, torch.ones(2).double()),
        Smoothness(5.0)(given(double), batch, None),
    ):
        assert torch.allclose(losses.values, plain, atol=1e-12)
    assert torch.allclose(Smoothness(5.0).errors(given(double), batch), plain, atol=1e-12)


def test_moving_means_by_hand() -> None:
    """Two adapters; a step in two parts; steps that are undone."""
    means = MovingMeans(2, torch.device("cpu"), observes=True)
    assert means.means_at(0, 4) is None
    nothing, sums = MovingMeans(2, torch.device("cpu"), observes=False), list[torch.Tensor]()
    nothing.end(sums.append)
    assert nothing.tensors(0) == {} and sums == []
    means.begin()
    means.observe(torch.tensor([1.0, 3.0, 10.0, 30.0]), whole=4)
    means.observe(torch.tensor([5.0, 7.0, 50.0, 70.0]), whole=4)
    means.end(lambda sums: None)
    assert means.mean.tolist() == pytest.approx([DECAY * 4, DECAY * 40])
    assert means.means_at(1, 4).tolist() == pytest.approx([4, 4, 40, 40])  # its start from 0 is taken out again
    means.begin()
    means.observe(torch.tensor([1.0, 1.0]), whole=1)
    means.end(lambda sums: sums.mul_(2))  # another process saw as much
    expected = ((1 - DECAY) * DECAY * 4 + DECAY * 2) / (1 - (1 - DECAY) ** 2)
    assert float(means.means_at(2, 2)[0]) == pytest.approx(expected)
    other = MovingMeans(2, torch.device("cpu"), observes=True)
    other.load(1, means.tensors(1))
    assert other.mean[1] == means.mean[1] and other.tensors(1)["objective/mean"] == means.mean[1]
    means.undo(0)
    assert means.mean.tolist() == pytest.approx([DECAY * 4, float(other.mean[1])])


def test_a_process_without_a_sample_of_a_step_joins_the_sum_of_the_others() -> None:
    """Else the others' sum would meet its next exchange, and stop the training."""
    means = MovingMeans(2, torch.device("cpu"), Smoothness.observes)
    means.begin()
    means.end(lambda sums: sums.add_(torch.tensor([4.0, 40.0])))
    assert means.mean.tolist() == pytest.approx([DECAY * 4, DECAY * 40])


@pytest.mark.parametrize("changes", [{}, {"batch": 1, "accumulation": 3}])
def test_a_training_keeps_the_mean_of_what_it_saw(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    """From the moves that the objective observed, in whatever parts, one adapter at a time."""
    settings = SMOOTH.model_copy(update=changes)
    seen, plain = list[float](), Smoothness.__call__

    def watched(self: Smoothness, *arguments: object) -> object:
        losses = plain(self, *arguments)  # type: ignore[arg-type]
        seen.extend(losses.observed.tolist())
        return losses

    monkeypatch.setattr(Smoothness, "__call__", watched)
    states = trained(fresh_tiny(), tmp_path, settings, pack_size=1)
    for number, state in enumerate(states.values()):
        own, mean = seen[18 * number : 18 * (number + 1)], 0.0  # six steps of three
        for step in range(6):
            mean += DECAY * (sum(own[3 * step : 3 * step + 3]) / 3 - mean)
        assert float(state.tensors["objective/mean"]) == pytest.approx(mean, rel=1e-5)


def test_it_evens_the_moves_out(fresh_tiny: Fresh, tmp_path: Path) -> None:
    """Trained for it, an adapter's loss falls below that of one that has not learned yet."""
    settings = SMOOTH.model_copy(update={"steps": 40, "smooth_weight": 30.0, "learning_rate": 5e-3})
    for state in trained(fresh_tiny(), tmp_path, settings, every=100).values():
        loss = state.tensors["curve/loss"]
        assert float(loss[-10:].mean()) < 0.9 * float(loss[1:11].mean())
