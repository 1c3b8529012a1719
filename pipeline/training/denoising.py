"""The usual objective: to predict what the base predicts, on the pictures at hand (Ho et al. 2020, eq. 14)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pipeline.base.conditioning import Conditioning
from pipeline.base.noise_path import NoisePath
from pipeline.base.protocol import Base
from pipeline.training.draws import Batch
from pipeline.training.objective import Recordable, Trained


@dataclass(frozen=True)
class Denoising(Recordable):
    """Squared error of the prediction. min_snr_gamma: limit on the weight of nearly clean times; None: no weights."""

    min_snr_gamma: float | None = None

    def inputs(self, path: NoisePath, batch: Batch, weighted: bool = True) -> Mapping[str, torch.Tensor]:
        """As `Recordable` has it."""
        if self.min_snr_gamma is None or not weighted:
            return noised(path, batch)
        weights = min_snr_weights(path, batch.times, self.min_snr_gamma)
        return {**noised(path, batch), "weights": weights.to(batch.clean, non_blocking=True)}

    def losses(self, trained: Trained, inputs: Mapping[str, torch.Tensor], conditioning: Conditioning) -> torch.Tensor:
        """As `Recordable` has it."""
        errors = mean_squares(residuals(trained.base, inputs, conditioning))
        return errors * inputs["weights"] if "weights" in inputs else errors


def weighted(errors: torch.Tensor, path: NoisePath, batch: Batch, min_snr_gamma: float | None) -> torch.Tensor:
    """Denoising errors (B,), each with the weight of its time."""
    return errors if min_snr_gamma is None else errors * min_snr_weights(path, batch.times, min_snr_gamma).to(errors)


def denoising_errors(base: Base, batch: Batch) -> torch.Tensor:
    """Mean squared error (B,) of the base's prediction for each noised sample."""
    return mean_squares(prediction_residuals(base, batch))


def prediction_residuals(base: Base, batch: Batch) -> torch.Tensor:
    """What the base predicts of the noised samples less what it should, (B, C, h, w)."""
    return residuals(base, noised(base.path, batch), batch.conditioning)


def noised(path: NoisePath, batch: Batch) -> dict[str, torch.Tensor]:
    """What the base is asked and should answer, each (B, ...) on the batch's device: `noisy` latents, `times` and the
    `target`."""
    return {
        "noisy": path.add_noise(batch.clean, batch.noise, batch.times),
        "times": batch.times.to(batch.clean, non_blocking=True),
        "target": path.target(batch.clean, batch.noise, batch.times),
    }


def residuals(base: Base, asked: Mapping[str, torch.Tensor], conditioning: Conditioning) -> torch.Tensor:
    """What the base answers less what it should, (B, C, h, w). asked: as `noised` gives it."""
    return base.predict(asked["noisy"], asked["times"], conditioning) - asked["target"]


def mean_squares(values: torch.Tensor) -> torch.Tensor:
    """Of each sample, (B,)."""
    return values.square().mean(dim=(1, 2, 3))


def min_snr_weights(path: NoisePath, times: torch.Tensor, gamma: float) -> torch.Tensor:
    """Weights (B,) of the prediction's squared error so that x0's is weighted by min(SNR, gamma).

    Hang et al. 2023, "Min-SNR Weighting Strategy", section 3.4: min(SNR, gamma) / SNR for noise, / (SNR + 1) for v.
    Where nothing of the picture is left, SNR is 0, and noise has weight 1.
    """
    snr, error = path.snr(times), path.clean_error_scale(times)
    # Below gamma the product of SNR and error: for noise it is 1, also where they are 0 and infinite.
    return torch.where(snr > gamma, gamma * error, (snr * error).nan_to_num(nan=1.0))
