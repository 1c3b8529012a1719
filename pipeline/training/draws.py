"""What the trainer draws: which examples, their latents, noise, times, flips and dropped captions.

Every draw comes from a generator keyed by (seed, example, step, place), so that it depends neither on the order of the
work nor on an interruption, the packing or the number of processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.base.conditioning import Conditioning
from pipeline.base.noise_path import NoisePath
from pipeline.base.posterior import keyed_seed
from pipeline.sections import TrainSection
from pipeline.training.examples import Example

VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where the validation loss is taken, in shares of the noise path."""


@dataclass(frozen=True)
class Batch:
    """Clean latents and noise (B, C, h, w), times (B,) on the CPU, and B captions: as they were encoded once, and their
    texts, for text encoders in training.

    seeds: one for each sample, for whatever else an objective draws (`drawn_by_each`). Times are in the path's own unit
    (timesteps 0 to 999, or 0 to 1 of a flow): for weights, take `path.snr(times)`.
    """

    clean: torch.Tensor
    noise: torch.Tensor
    times: torch.Tensor
    conditioning: Conditioning
    captions: tuple[str, ...]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.clean)

    def take(self, rows: torch.Tensor) -> "Batch":
        """Some of its samples, by their rows."""
        captions, seeds = (tuple(each[row] for row in rows.tolist()) for each in (self.captions, self.seeds))
        conditioning = self.conditioning.take(rows)
        return Batch(self.clean[rows], self.noise[rows], self.times[rows], conditioning, captions, seeds)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, but for its times."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            # From pinned memory, or the host would wait until the device has done the step before.
            pinned = device.type == "cuda" and tensor.device.type == "cpu"
            return (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)

        conditioning = Conditioning({name: moved(tensor) for name, tensor in self.conditioning.tensors.items()})
        return replace(self, clean=moved(self.clean), noise=moved(self.noise), conditioning=conditioning)

    @staticmethod
    def concatenate(batches: Sequence["Batch"]) -> "Batch":
        """Several batches as one, in order."""
        return Batch(
            torch.cat([batch.clean for batch in batches]),
            torch.cat([batch.noise for batch in batches]),
            torch.cat([batch.times for batch in batches]),
            Conditioning.stack([batch.conditioning for batch in batches]),
            tuple(caption for batch in batches for caption in batch.captions),
            tuple(seed for batch in batches for seed in batch.seeds),
        )


def draw_batch(
    examples: Sequence[Example],
    settings: TrainSection,
    path: NoisePath,
    empty_caption: Conditioning,
    step: int,
    places: Sequence[int],
) -> Batch:
    """The given places of an optimizer step's samples, of `batch * accumulation` in all.

    empty_caption: one row, for caption dropout.
    """
    order = epoch_order(len(examples), settings, step)
    return Batch.concatenate(
        [_draw(examples[order[place]], settings, path, empty_caption, step, place) for place in places]
    )


def _draw(
    example: Example, settings: TrainSection, path: NoisePath, empty_caption: Conditioning, step: int, place: int
) -> Batch:
    generator = torch.Generator().manual_seed(keyed_seed(settings.seed, example.digest, step, place))
    flip = settings.flip and float(torch.rand((), generator=generator)) < 0.5
    dropped = settings.caption_dropout and float(torch.rand((), generator=generator)) < settings.caption_dropout
    posterior = example.flipped if flip and example.flipped is not None else example.posterior
    latents = posterior.sample(generator)
    noise = noise_like(latents, settings.noise_offset, generator)
    times = path.times_at(_spread(settings, step, place))
    conditioning, caption = (empty_caption, "") if dropped else (example.conditioning, example.caption)
    seed = keyed_seed("objective", settings.seed, example.digest, step, place)
    return Batch(latents, noise, times, conditioning, (caption,), (seed,))


def _spread(settings: TrainSection, step: int, place: int) -> torch.Tensor:
    """One of a step's uniform draws, (1,), which lie evenly over [0, 1) from a random start (Kingma et al. 2021, I.1).

    The loss varies with time more than with anything else: such a step tells as much as one of more samples.
    """
    count = settings.batch * settings.accumulation
    start = torch.rand(1, generator=torch.Generator().manual_seed(keyed_seed(settings.seed, "times", step)))
    return (start + place / count) % 1


def noise_like(latents: torch.Tensor, offset: float, generator: torch.Generator) -> torch.Tensor:
    """Unit noise for latents (B, C, h, w); with an offset, a constant a channel of that std is added.

    Guttenberg 2023, "Diffusion With Offset Noise": so the mean brightness is learned too.
    """
    noise = torch.randn(latents.shape, generator=generator)
    if offset:
        noise += offset * torch.randn(*latents.shape[:2], 1, 1, generator=generator)
    return noise.to(latents)


def drawn_by_each(batch: Batch, draw: Callable[[torch.Generator], torch.Tensor], name: str) -> torch.Tensor:
    """What `draw` makes of a generator, for each sample from its own seed, below each other on the batch's device.

    name: of what is drawn, so that different things differ.
    """
    drawn = [draw(torch.Generator().manual_seed(keyed_seed(name, seed))) for seed in batch.seeds]
    return torch.stack(drawn).to(batch.clean.device, non_blocking=True)


def epoch_order(count: int, settings: TrainSection, step: int) -> list[int]:
    """Which examples an optimizer step takes: place p of the run is place p mod count of epoch p div count."""
    size = settings.batch * settings.accumulation
    places = range(step * size, (step + 1) * size)
    orders = {
        epoch: torch.randperm(count, generator=torch.Generator().manual_seed(keyed_seed(settings.seed, "epoch", epoch)))
        for epoch in {place // count for place in places}
    }
    return [int(orders[place // count][place % count]) for place in places]


def validation_batch(example: Example, path: NoisePath) -> Batch:
    """The same latents, noise and times for an example in every run, so that losses can be compared between runs."""
    generator = torch.Generator().manual_seed(keyed_seed("validation", example.digest))
    count = len(VALIDATION_TIMES)
    latents = torch.cat([example.posterior.sample(generator) for _ in range(count)])
    noise = noise_like(latents, 0.0, generator)
    times = torch.tensor([path.time_at(share) for share in VALIDATION_TIMES])
    seeds = tuple(keyed_seed("validation objective", example.digest, share) for share in VALIDATION_TIMES)
    return Batch(latents, noise, times, example.conditioning.repeat(count), (example.caption,) * count, seeds)
