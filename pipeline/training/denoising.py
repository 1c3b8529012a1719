"""The usual objective: to predict what the base predicts, on the pictures at hand (Ho et al. 2020, eq. 14)."""

from dataclasses import dataclass

import torch

from pipeline.base.noise_path import NoisePath
from pipeline.base.protocol import Base
from pipeline.training.draws import Batch
from pipeline.training.objective import Losses, Objective, Trained


@dataclass(frozen=True)
class Denoising(Objective):
    """Squared error of the prediction. min_snr_gamma: limit on the weight of nearly clean times; None: no weights."""

    min_snr_gamma: float | None = None

    def __call__(self, trained: Trained, batch: Batch, means: torch.Tensor | None = None) -> Losses:
        """Losses, and nothing observed."""
        return Losses(weighted(denoising_errors(trained.base, batch), trained.base.path, batch, self.min_snr_gamma))

    def errors(self, trained: Trained, batch: Batch) -> torch.Tensor:
        """Without weights."""
        return denoising_errors(trained.base, batch)


def weighted(errors: torch.Tensor, path: NoisePath, batch: Batch, min_snr_gamma: float | None) -> torch.Tensor:
    """Denoising errors (B,), each with the weight of its time."""
    return errors if min_snr_gamma is None else errors * min_snr_weights(path, batch.times, min_snr_gamma).to(errors)


def denoising_errors(base: Base, batch: Batch) -> torch.Tensor:
    """Mean squared error (B,) of the base's prediction for each noised sample."""
    return prediction_residuals(base, batch).square().mean(dim=(1, 2, 3))


def prediction_residuals(base: Base, batch: Batch) -> torch.Tensor:
    """What the base predicts of the noised samples less what it should, (B, C, h, w)."""
    noisy = base.path.add_noise(batch.clean, batch.noise, batch.times)
    prediction = base.predict(noisy, batch.times, batch.conditioning)
    return prediction - base.path.target(batch.clean, batch.noise, batch.times)


def min_snr_weights(path: NoisePath, times: torch.Tensor, gamma: float) -> torch.Tensor:
    """Weights (B,) of the prediction's squared error so that x0's is weighted by min(SNR, gamma).

    Hang et al. 2023, "Min-SNR Weighting Strategy", section 3.4: min(SNR, gamma) / SNR for noise, / (SNR + 1) for v.
    Where nothing of the picture is left, SNR is 0, and noise has weight 1.
    """
    snr, error = path.snr(times), path.clean_error_scale(times)
    # Below gamma the product of SNR and error: for noise it is 1, also where they are 0 and infinite.
    return torch.where(snr > gamma, gamma * error, (snr * error).nan_to_num(nan=1.0))
