from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from pipeline.base.protocol import Base
from pipeline.training.denoising import Denoising, denoising_errors, min_snr_weights
from pipeline.training.draws import draw_batch
from pipeline.training.objective import Trained
from tests.paths import PATHS, diffusion_path
from tests.tiny import caption_of
from tests.training.settings import SETTINGS
from tests.training.test_draws import EMPTY, examples


def test_min_snr_weights_by_hand() -> None:
    table = torch.tensor([0.0, 0.5, 0.75, 0.99], dtype=torch.float64)  # SNR 0, 1, 3, 99
    times = torch.arange(4)
    epsilon, v = (replace(diffusion_path(name), alphas_cumprod=table) for name in ("epsilon", "v_prediction"))
    assert min_snr_weights(epsilon, times, 5.0).tolist() == pytest.approx([1, 1, 1, 5 / 99])
    assert min_snr_weights(v, times, 5.0).tolist() == pytest.approx([0, 1 / 2, 3 / 4, 5 / 100])
    assert min_snr_weights(epsilon, times, 2.0).tolist() == pytest.approx([1, 1, 2 / 3, 2 / 99])
    # A flow's velocity: min(SNR, gamma) s^2, at s = 0.25 and so an SNR of 9.
    assert min_snr_weights(PATHS["flow"], torch.tensor([0.25]), 5.0).tolist() == pytest.approx([5 / 16])


def test_the_error_is_that_of_the_prediction_for_the_noised_latents(tiny: Base) -> None:
    batch = draw_batch(examples(2), SETTINGS.model_copy(update={"batch": 4}), tiny.path, EMPTY, 0, range(4))
    batch = replace(batch, conditioning=caption_of(torch.zeros(4, 64, 16)))
    with torch.no_grad():
        errors = denoising_errors(tiny, batch)
        for row in range(4):
            abar = float(tiny.path.alphas_cumprod[batch.times[row]])
            clean, noise = batch.clean[row : row + 1], batch.noise[row : row + 1]
            noisy = abar**0.5 * clean + (1 - abar) ** 0.5 * noise
            v = abar**0.5 * noise - (1 - abar) ** 0.5 * clean
            target = noise if tiny.path.prediction_type == "epsilon" else v
            out = tiny.denoiser(noisy, batch.times[row], torch.zeros(1, 64, 16)).sample
            assert float(errors[row]) == pytest.approx(float((out - target).square().mean()), rel=1e-4)


def test_min_snr_weights_each_sample_by_its_time(tiny: Base) -> None:
    batch = draw_batch(examples(2), SETTINGS.model_copy(update={"batch": 4}), tiny.path, EMPTY, 0, range(4))
    batch = replace(batch, conditioning=caption_of(torch.zeros(4, 64, 16)))
    with torch.no_grad():
        given = Trained(tiny, EMPTY, nullcontext)
        plain, weighted = (Denoising(gamma)(given, batch).values for gamma in (None, 0.5))
    expected = min_snr_weights(tiny.path, batch.times, 0.5)
    assert torch.allclose(weighted, plain * expected.float()) and not torch.allclose(weighted, plain)
