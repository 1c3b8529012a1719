"""What the trainer draws: which samples, their latents, noise, timesteps, flips and dropped captions.

Every draw comes from a generator keyed by (seed, sample, step, place), so that it depends neither on the order of the
work nor on an interruption, the packing or the number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.adapters.lora import keyed_seed
from pipeline.base.stable_diffusion import Posterior, StableDiffusion
from pipeline.params import TrainSection

VALIDATION_TIMESTEPS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where the validation loss is taken, in shares of the schedule."""


@dataclass(frozen=True)
class Sample:
    """One picture as the trainer sees it, encoded once: its latents' posterior and its caption's embedding (1, L, D).

    digest: of the picture's bytes and the caption; it keys the sample's draws. flipped: the mirrored picture's
    posterior, where flips are asked for.
    """

    name: str
    digest: str
    posterior: Posterior
    conditioning: torch.Tensor
    caption: str
    flipped: Posterior | None = None


@dataclass(frozen=True)
class Batch:
    """Clean latents and noise (B, C, h, w), timesteps (B,), conditioning (B, L, D)."""

    clean: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    conditioning: torch.Tensor

    def part(self, places: torch.Tensor) -> "Batch":
        """Some of its samples, by their places."""
        return Batch(self.clean[places], self.noise[places], self.timesteps[places], self.conditioning[places])

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        parts = (self.clean, self.noise, self.timesteps, self.conditioning)
        return Batch(*(part.to(device, non_blocking=True) for part in parts))


def draw_batch(
    samples: Sequence[Sample],
    settings: TrainSection,
    schedule_length: int,
    empty: torch.Tensor,
    step: int,
    places: range,
) -> Batch:
    """The given places of an optimizer step's samples, of `batch * accumulation` in all.

    empty: the embedding of the empty caption (1, L, D), for caption dropout.
    """
    order = epoch_order(len(samples), settings, step)
    drawn = [
        _draw(samples[order[place]], settings, schedule_length, empty, settings.seed, step, place) for place in places
    ]
    return joined(drawn)


def _draw(sample: Sample, settings: TrainSection, schedule_length: int, empty: torch.Tensor, *key: int) -> Batch:
    seed, step, place = key
    generator = torch.Generator().manual_seed(keyed_seed(seed, sample.digest, step, place))
    flip = settings.flip and float(torch.rand((), generator=generator)) < 0.5
    dropped = settings.caption_dropout and float(torch.rand((), generator=generator)) < settings.caption_dropout
    posterior = sample.flipped if flip and sample.flipped is not None else sample.posterior
    latents = posterior.sample(generator)
    noise = noise_like(latents, settings.noise_offset, generator)
    timestep = torch.randint(schedule_length, (1,), generator=generator)
    return Batch(latents, noise, timestep.to(latents.device), empty if dropped else sample.conditioning)


def noise_like(latents: torch.Tensor, offset: float, generator: torch.Generator) -> torch.Tensor:
    """Unit noise for latents (B, C, h, w); with an offset, a constant a channel of that std is added.

    Guttenberg 2023, "Diffusion With Offset Noise": so the mean brightness is learned too.
    """
    noise = torch.randn(latents.shape, generator=generator)
    if offset:
        noise += offset * torch.randn(*latents.shape[:2], 1, 1, generator=generator)
    return noise.to(latents)


def epoch_order(count: int, settings: TrainSection, step: int) -> list[int]:
    """Which samples an optimizer step takes: place p of the run is place p mod count of epoch p div count."""
    size = settings.batch * settings.accumulation
    places = range(step * size, (step + 1) * size)
    orders = {
        epoch: torch.randperm(count, generator=torch.Generator().manual_seed(keyed_seed(settings.seed, "epoch", epoch)))
        for epoch in {place // count for place in places}
    }
    return [int(orders[place // count][place % count]) for place in places]


def validation_batch(sample: Sample, schedule_length: int) -> Batch:
    """The same latents, noise and timesteps for a sample in every run, so that losses can be compared between runs."""
    generator = torch.Generator().manual_seed(keyed_seed("validation", sample.digest))
    count = len(VALIDATION_TIMESTEPS)
    latents = torch.cat([sample.posterior.sample(generator) for _ in range(count)])
    noise = noise_like(latents, 0.0, generator)
    timesteps = torch.tensor([int(share * schedule_length) for share in VALIDATION_TIMESTEPS], device=latents.device)
    return Batch(latents, noise, timesteps, sample.conditioning.expand(count, -1, -1))


def joined(batches: Sequence[Batch]) -> Batch:
    """Several batches as one, in order."""
    return Batch(
        torch.cat([batch.clean for batch in batches]),
        torch.cat([batch.noise for batch in batches]),
        torch.cat([batch.timesteps for batch in batches]),
        torch.cat([batch.conditioning for batch in batches]),
    )


def denoising_losses(base: StableDiffusion, batch: Batch, min_snr_gamma: float | None = None) -> torch.Tensor:
    """Squared error (B,) of the base's prediction (noise or v) for each noised sample (Ho et al. 2020, eq. 14)."""
    noisy = base.schedule.add_noise(batch.clean, batch.noise, batch.timesteps)
    prediction = base.predict(noisy, batch.timesteps, batch.conditioning)
    target = base.schedule.target(batch.clean, batch.noise, batch.timesteps)
    losses = (prediction - target).square().mean(dim=(1, 2, 3))
    if min_snr_gamma is None:
        return losses
    return losses * min_snr_weights(
        base.schedule.alphas_cumprod[batch.timesteps.cpu()], min_snr_gamma, base.schedule.prediction_type
    ).to(losses)


def min_snr_weights(alphas_cumprod: torch.Tensor, gamma: float, prediction_type: str) -> torch.Tensor:
    """min(SNR, gamma) / SNR for noise, / (SNR + 1) for v (Hang et al. 2023, "Min-SNR Weighting Strategy", section 3.4).

    alphas_cumprod: a_t of each sample, (B,). Where nothing of the picture is left, SNR is 0, and noise weighs 1.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return torch.where(snr > gamma, gamma / snr.clamp_min(gamma), 1.0)
