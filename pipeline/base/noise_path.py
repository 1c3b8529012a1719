"""How a base adds noise, and what its predictions mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class NoiseSchedule:
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise (Ho et al. 2020), with a_t = `alphas_cumprod[t]`, (T,) float64.

    prediction_type: "epsilon" (the noise) or "v_prediction" (v = sqrt(a) noise - sqrt(1 - a) x_0, Salimans and Ho
    2022). final_alpha_cumprod: a below the first timestep. steps_offset, spacing: as in the base's scheduler.
    """

    alphas_cumprod: torch.Tensor
    final_alpha_cumprod: float
    prediction_type: str
    steps_offset: int
    spacing: str = "leading"

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any]) -> "NoiseSchedule":
        """The schedule of a diffusers scheduler_config.json, whatever sampler it names."""
        from diffusers import DDIMScheduler

        # Samplers of other families keep settings that DDIM does not know; the noise schedule is the same.
        ddim = DDIMScheduler.from_config({**config, "clip_sample": False, "thresholding": False})
        return cls(
            ddim.alphas_cumprod.double(),
            float(ddim.final_alpha_cumprod),
            ddim.config.prediction_type,
            int(ddim.config.steps_offset),
            str(ddim.config.timestep_spacing),
        )

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def timesteps(self, steps: int) -> list[int]:
        """`steps` rising timesteps, spaced as the base's own scheduler spaces them (Lin et al. 2024, table 2).

        leading: from the first, shifted by `steps_offset`. trailing: up to the last, as zero terminal SNR needs it.
        linspace: both ends. Raises ValueError when there are more steps than the schedule has timesteps.
        """
        if not 1 <= steps <= len(self):
            raise ValueError(f"{steps} steps asked of a schedule of {len(self)}")
        if self.spacing == "trailing":
            return [round(len(self) * (index + 1) / steps) - 1 for index in range(steps)]
        if self.spacing == "linspace":
            return [round((len(self) - 1) * index / max(1, steps - 1)) for index in range(steps)]
        stride = len(self) // steps
        offset = min(self.steps_offset, len(self) - 1 - stride * (steps - 1))
        return [stride * index + offset for index in range(steps)]

    def alpha_cumprod(self, timestep: int | None) -> float:
        """a_t; None stands for the clean end before the first timestep."""
        return self.final_alpha_cumprod if timestep is None else float(self.alphas_cumprod[timestep])

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t for clean latents and noise (B, C, h, w) and timesteps (B,)."""
        signal, scale = self._coefficients(clean, timesteps)
        return signal * clean + scale * noise

    def target(self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the base should predict of x_t: the noise, or v."""
        if self.prediction_type == "epsilon":
            return noise
        signal, scale = self._coefficients(clean, timesteps)
        return signal * noise - scale * clean

    def _coefficients(self, like: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alpha = self.alphas_cumprod[timesteps.cpu()].view(-1, *[1] * (like.ndim - 1))
        return alpha.sqrt().to(like), (1 - alpha).sqrt().to(like)

    def split(self, noisy: torch.Tensor, prediction: torch.Tensor, timestep: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(clean, noise), both (B, C, h, w), that the base's prediction for x_t means."""
        alpha = self.alpha_cumprod(timestep)
        signal, scale = alpha**0.5, (1 - alpha) ** 0.5
        if self.prediction_type == "epsilon":
            return (noisy - scale * prediction) / signal, prediction
        return signal * noisy - scale * prediction, scale * noisy + signal * prediction
