"""The path from pictures to noise, x = a x0 + s e, and what a network's prediction means on it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch


@dataclass(frozen=True)
class Level:
    """One point of a path: x = a x0 + s e. time: what the network gets for it."""

    time: float
    a: float
    s: float


class Pair(NamedTuple):
    """What a prediction means: clean latents x0 and noise e, both (B, C, h, w)."""

    clean: torch.Tensor
    noise: torch.Tensor


class NoisePath(Protocol):
    """A noising path. A new one gives `levels`, `at`, `times_at`, `time_at`, `even_times`, `handover`,
    `target_coefficients`.

    The network predicts y = c x0 + d e, with c and d as `target_coefficients` gives them for a and s: the noise (0, 1),
    v (-s, a), or a flow's velocity (-1, 1). Others write alpha_t, sigma_t and epsilon for a, s and e. Times are in the
    path's own unit, not to be compared between paths, and tensors (B,) on the CPU, where they are drawn: so no GPU has
    to be waited for.
    """

    def levels(self, steps: int) -> tuple[Level, ...]:
        """The `steps` + 1 levels between which a solver steps, from the clean end to the noise.

        The network is asked at all but the first. Raises ValueError for more steps than the path has.
        """
        ...

    def at(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """a and s, (B,) float64, at times (B,), which may lie between those that the base was trained at."""
        ...

    def times_at(self, draws: torch.Tensor) -> torch.Tensor:
        """Times (B,) to train at, for draws (B,) that are uniform in [0, 1)."""
        ...

    def time_at(self, share: float) -> float:
        """The time at a share of the path, 0 (clean) to below 1 (noise)."""
        ...

    def even_times(self, count: int) -> torch.Tensor:
        """The ends of `count` equal parts of the path, (count,), from near the clean end to the noise."""
        ...

    def handover(self, done: float) -> float:
        """The time below which a second base takes over that has its turn once a share `done`, 0 to 1, of the way from
        noise lies behind."""
        ...

    def target_coefficients(self, a: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """c and d of what the network predicts at a and s, all (B,)."""
        ...

    def level(self, time: float) -> Level:
        """The level at one time."""
        a, s = self.at(torch.tensor([time]))
        return Level(time, float(a), float(s))

    def midpoint(self, one: Level, other: Level) -> Level:
        """The level halfway between two, where a midpoint rule asks the network: by their times."""
        return self.level((one.time + other.time) / 2)

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """x for clean latents and noise (B, C, h, w) at times (B,)."""
        return _combine(self.at(times), clean, noise)

    def target(self, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """What the network should predict of that x."""
        return _combine(self.target_coefficients(*self.at(times)), clean, noise)

    def split(self, x: torch.Tensor, prediction: torch.Tensor, level: Level, x_at: Level | None = None) -> Pair:
        """The pair (clean, noise) that solves x = a x0 + s e and prediction = c x0 + d e.

        level: where the prediction was made. x_at: where x lies, if elsewhere (a step that is solved for its far end).
        """
        a, s = (level.a, level.s) if x_at is None else (x_at.a, x_at.s)
        c, d = (
            float(part)
            for part in self.target_coefficients(torch.tensor(level.a).double(), torch.tensor(level.s).double())
        )
        determinant = a * d - s * c
        return Pair((d * x - s * prediction) / determinant, (a * prediction - c * x) / determinant)

    def split_each(self, x: torch.Tensor, prediction: torch.Tensor, times: torch.Tensor) -> Pair:
        """`split` of samples (B, C, h, w) that each have a time of their own, (B,)."""
        a, s = self.at(times)
        c, d = self.target_coefficients(a, s)
        determinant = a * d - s * c
        clean = _combine((d / determinant, -s / determinant), x, prediction)
        return Pair(clean, _combine((-c / determinant, a / determinant), x, prediction))

    def snr(self, times: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio (a / s)^2, (B,) float64, at times (B,)."""
        a, s = self.at(times)
        return (a / s).square()

    def clean_error_scale(self, times: torch.Tensor) -> torch.Tensor:
        """The squared error of x0 for a squared error of 1 in the prediction, (B,) float64.

        From `split` with x known: x0 = (d x - s y) / (a d - s c), so it is (s / (a d - s c))^2.
        """
        a, s = self.at(times)
        c, d = self.target_coefficients(a, s)
        return (s / (a * d - s * c)).square()


def _combine(factors: tuple[torch.Tensor, torch.Tensor], clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    one, two = (factor.view(-1, *[1] * (clean.ndim - 1)).to(clean, non_blocking=True) for factor in factors)
    return one * clean + two * noise


@dataclass(frozen=True)
class VariancePreserving(NoisePath):
    """a = sqrt(abar_t), s = sqrt(1 - abar_t) (Ho et al. 2020), with abar = `alphas_cumprod`, (T,) float64.

    prediction_type: "epsilon" (the noise) or "v_prediction" (v = a e - s x0, Salimans and Ho 2022).
    final_alpha_cumprod: abar at the clean end. steps_offset, spacing: as in the base's scheduler.
    """

    alphas_cumprod: torch.Tensor
    final_alpha_cumprod: float
    prediction_type: str
    steps_offset: int
    spacing: str = "leading"

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any]) -> "VariancePreserving":
        """The path of a diffusers scheduler_config.json, whatever sampler it names."""
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

    def levels(self, steps: int) -> tuple[Level, ...]:
        """The clean end, where nothing is asked of the network, and the level of each timestep."""
        abar = self.final_alpha_cumprod
        return (Level(0.0, abar**0.5, (1 - abar) ** 0.5), *(self.level(time) for time in self.timesteps(steps)))

    def at(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From the table; between two timesteps a is linear, which is well defined at zero terminal SNR too."""
        if not times.is_floating_point():
            abar = self.alphas_cumprod[times.cpu()]
            return abar.sqrt(), (1 - abar).sqrt()
        below = times.cpu().floor().long().clamp(0, len(self) - 1)
        above = (below + 1).clamp(max=len(self) - 1)
        signal = self.alphas_cumprod.sqrt()
        a = torch.lerp(signal[below], signal[above], (times.cpu().double() - below).clamp(0, 1))
        return a, (1 - a.square()).sqrt()

    def midpoint(self, one: Level, other: Level) -> Level:
        """Halfway along the arc a = cos, s = sin, not in time: s grows as the root of time at the clean end, and with
        the midpoint in time a second-order step there would be of first order."""
        angle = (math.atan2(one.s, one.a) + math.atan2(other.s, other.a)) / 2
        angles = self.alphas_cumprod.sqrt().acos()
        above = int(torch.searchsorted(angles, angle).clamp(1, len(self) - 1))
        share = (angle - angles[above - 1]) / (angles[above] - angles[above - 1])
        return Level(above - 1 + float(share.clamp(0, 1)), math.cos(angle), math.sin(angle))

    def times_at(self, draws: torch.Tensor) -> torch.Tensor:
        """Uniform over the timesteps (Ho et al. 2020, algorithm 1)."""
        return (draws * len(self)).long()

    def time_at(self, share: float) -> int:
        """The timestep at that share of the table."""
        return int(share * len(self))

    def even_times(self, count: int) -> torch.Tensor:
        """Every so many timesteps up to the last, whatever the scheduler's spacing."""
        return torch.tensor([round(len(self) * (index + 1) / count) - 1 for index in range(count)])

    def handover(self, done: float) -> int:
        """As diffusers' `denoising_end` and `denoising_start` count it."""
        return round(len(self) - done * len(self))

    def target_coefficients(self, a: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The noise, or v."""
        if self.prediction_type == "epsilon":
            return torch.zeros_like(a), torch.ones_like(s)
        return -s, a
