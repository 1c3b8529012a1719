"""A base's prediction for captions, and classifier-free guidance (Ho and Salimans 2022). Tensors in, tensors out."""

import torch

from pipeline.base.conditioning import Conditioning, Control
from pipeline.base.noise_path import Level
from pipeline.base.protocol import Base
from pipeline.sampling.recorded import Recorded
from pipeline.sampling.solver import Predict


def predictor(base: Base, conditioning: Conditioning, control: Control | None = None) -> Predict:
    """The base's prediction for a batch that always has these captions, and this control.

    Between two calls nothing of what is attached to the base may change, but for values in place: on CUDA, calls
    without gradients are launched from a record of the second.
    """

    def at_times(latents: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return base.predict(latents, times, conditioning, control)

    recorded = Recorded(at_times, base.device)

    def predict(latents: torch.Tensor, level: Level) -> torch.Tensor:
        times = torch.full((len(latents),), level.time, dtype=torch.float32, device=base.device)
        return (at_times if torch.is_grad_enabled() else recorded)(latents, times)

    return predict


def guided(predict: Predict, guidance: float, rescale: float = 0.0) -> Predict:
    """Guidance g over a `predict` that takes twice the batch, first the rows of the empty or negative caption:
    prediction = empty + g (caption - empty)."""

    def both(latents: torch.Tensor, level: Level) -> torch.Tensor:
        without, given = predict(torch.cat([latents, latents]), level).chunk(2)
        return rescaled(without + guidance * (given - without), given, rescale)

    return both


def rescaled(guided: torch.Tensor, given: torch.Tensor, share: float) -> torch.Tensor:
    """Bring guided predictions (B, C, h, w) back to the spread of the unguided ones, by `share` of the way.

    Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", eqs. 15 and 16: guidance inflates
    predictions, and pictures come out overexposed.
    """
    if share == 0:
        return guided
    factors = given.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(guided, guided * factors, share)
