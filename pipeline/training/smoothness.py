"""To denoise, and to let the picture change evenly with its noise (Guo et al., CVPR 2024, "Smooth Diffusion").

How far the predicted picture moves for a small move of the noise is kept near its own mean, whatever the noise and the
direction. The published code takes the prediction for the noise even where it is v, and keeps a mean for each process
that it does not save; here neither is so.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.training.denoising import denoising_errors, weighted
from pipeline.training.draws import Batch, drawn_by_each
from pipeline.training.objective import Losses, Objective, Trained


@dataclass(frozen=True)
class Smoothness(Objective):
    """weight: of the regulariser beside the denoising error. min_snr_gamma: as in `Denoising`."""

    observes: ClassVar[bool] = True
    weight: float
    min_snr_gamma: float | None = None

    def __call__(self, trained: Trained, batch: Batch, means: torch.Tensor | None) -> Losses:
        """Losses, and how far pictures move, whose mean is kept. In the first step there is none to keep near to."""
        path = trained.base.path
        # Fused attention has no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            moves, errors = moves_and_errors(trained, batch)
        losses = weighted(errors, path, batch, self.min_snr_gamma)
        if means is not None:
            losses = losses + self.weight * (moves - means).square()
        return Losses(losses, observed=moves.detach())

    def errors(self, trained: Trained, batch: Batch) -> torch.Tensor:
        """The denoising error alone."""
        return denoising_errors(trained.base, batch)


def moves_and_errors(trained: Trained, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of the derivative, with respect to the noise, of the predicted clean latents along a random direction of
    length about s; and the denoising errors; both (B,), differentiable."""
    base, path = trained.base, trained.base.path
    noise = batch.noise.detach().requires_grad_()
    noisy = path.add_noise(batch.clean, noise, batch.times)
    prediction = base.predict(noisy, batch.times, batch.conditioning)
    errors = (prediction - path.target(batch.clean, batch.noise, batch.times)).square().mean(dim=(1, 2, 3))
    clean = path.split_each(noisy, prediction, batch.times).clean
    shape = batch.clean.shape[1:]
    directions = drawn_by_each(batch, lambda generator: torch.randn(shape, generator=generator), "direction")
    _, s = path.at(batch.times)
    directions = directions * (s / shape.numel() ** 0.5).view(-1, 1, 1, 1).to(directions)
    (moved,) = torch.autograd.grad((clean * directions).sum(), noise, create_graph=torch.is_grad_enabled())
    return moved.flatten(1).norm(dim=1), errors
