"""Training one adapter on a frozen base.

`morphline train <set>` runs this for each adapter of a set. An adapter is a function of its inputs: every draw comes
from a generator keyed by (seed, sample, step), so neither the order of the work nor an interruption changes it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from tqdm import tqdm

from pipeline.adapters.checkpoints import TrainState, load_checkpoint, save_checkpoint
from pipeline.adapters.lora import adapter_weights, add_adapter, keyed_seed
from pipeline.base.stable_diffusion import Posterior, StableDiffusion
from pipeline.params import TrainSection


@dataclass(frozen=True)
class Sample:
    """One picture as the trainer sees it, encoded once: its latents' posterior and its caption's embedding (1, L, D).

    digest: of the picture's bytes and the caption; it keys the sample's noise.
    """

    name: str
    digest: str
    posterior: Posterior
    conditioning: torch.Tensor
    caption: str


@dataclass(frozen=True)
class Curves:
    """What each optimizer step saw, (steps,) float64 each."""

    loss: torch.Tensor
    grad_norm: torch.Tensor


OnSteps = Callable[[int, dict[str, float]], None]


def train_adapter(
    base: StableDiffusion,
    name: str,
    samples: Sequence[Sample],
    settings: TrainSection,
    checkpoint: Path,
    checkpoint_every: int,
    on_step: OnSteps,
    label: str | None = None,
) -> Curves:
    """Train the adapter `name` on the samples, leave it in `base.unet`, and return its curves.

    label: what progress and errors call it, if not by its name.

    Raises:
        FloatingPointError: when the loss or a gradient is not finite.
    """
    label = label or name
    identity = keyed_seed(settings.seed, *(sample.digest for sample in samples))
    weights = add_adapter(base.unet, name, settings.rank, settings.alpha, identity)
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    curves = Curves(*torch.zeros(2, settings.steps, dtype=torch.float64))
    # Explicit arguments: a user's own accelerate config must not change a result.
    # Float16 needs its loss scaled, or small gradients become zero; the scaler then skips steps that overflow.
    scaled = base.dtype == torch.float16
    accelerator = Accelerator(
        cpu=base.device.type == "cpu", mixed_precision="fp16" if scaled else "no", gradient_accumulation_steps=1
    )
    unet, optimizer = accelerator.prepare(base.unet, optimizer)
    first = _resume(base, name, optimizer, accelerator, curves, checkpoint)
    wrapped = replace(base, unet=unet)
    unet.train()
    for step in tqdm(range(first, settings.steps), initial=first, total=settings.steps, desc=label, unit="step"):
        loss = batch_loss(wrapped, draw_batch(base, samples, settings, step))
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(weights, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        curves.loss[step], curves.grad_norm[step] = loss.item(), norm.item()
        if not math.isfinite(curves.loss[step]) or not (scaled or math.isfinite(curves.grad_norm[step])):
            raise FloatingPointError(
                f"{label}: loss {loss.item()} and gradient norm {norm.item()} at step {step}; "
                "lower train.learning_rate, or use base.dtype: float32"
            )
        on_step(
            step,
            {"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": optimizer.param_groups[0]["lr"]},
        )
        if (step + 1) % checkpoint_every == 0 or step + 1 == settings.steps:
            save_checkpoint(checkpoint, _state(base, name, optimizer, accelerator, curves, step + 1))
    unet.eval()
    return curves


@dataclass(frozen=True)
class Batch:
    """Clean latents and noise (B, C, h, w), timesteps (B,), conditioning (B, L, D)."""

    clean: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    conditioning: torch.Tensor


def draw_batch(base: StableDiffusion, samples: Sequence[Sample], settings: TrainSection, step: int) -> Batch:
    """The batch of a step: samples in shuffled epochs, each with latents, noise and timestep of its own generator."""
    chosen = [samples[index] for index in _epoch_order(len(samples), settings, step)]
    clean, noise, timesteps = [], [], []
    for place, sample in enumerate(chosen):
        generator = torch.Generator().manual_seed(keyed_seed(settings.seed, sample.digest, step, place))
        latents = sample.posterior.sample(generator)
        drawn = torch.randn(latents.shape, generator=generator)
        if settings.noise_offset:
            # A constant a channel (Guttenberg 2023), so that the mean brightness is learned too.
            drawn += settings.noise_offset * torch.randn(*latents.shape[:2], 1, 1, generator=generator)
        clean.append(latents)
        noise.append(drawn.to(latents.device))
        timesteps.append(torch.randint(len(base.schedule), (1,), generator=generator).to(latents.device))
    conditioning = torch.cat([sample.conditioning for sample in chosen])
    return Batch(torch.cat(clean), torch.cat(noise), torch.cat(timesteps), conditioning)


def _epoch_order(count: int, settings: TrainSection, step: int) -> list[int]:
    """Which samples step `step` takes: place p of the run is place p mod count of epoch p div count."""
    places = range(step * settings.batch, (step + 1) * settings.batch)
    orders = {
        epoch: torch.randperm(count, generator=torch.Generator().manual_seed(keyed_seed(settings.seed, "epoch", epoch)))
        for epoch in {place // count for place in places}
    }
    return [int(orders[place // count][place % count]) for place in places]


def batch_loss(base: StableDiffusion, batch: Batch) -> torch.Tensor:
    """Mean squared error of the base's prediction (noise or v) for the noised latents (Ho et al. 2020, eq. 14)."""
    noisy = base.schedule.add_noise(batch.clean, batch.noise, batch.timesteps)
    prediction = base.predict(noisy, batch.timesteps, batch.conditioning)
    return F.mse_loss(prediction, base.schedule.target(batch.clean, batch.noise, batch.timesteps))


def _state(
    base: StableDiffusion,
    name: str,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    curves: Curves,
    step: int,
) -> TrainState:
    tensors = {"curve/loss": curves.loss, "curve/grad_norm": curves.grad_norm}
    for key, weight in adapter_weights(base.unet, name).items():
        tensors[f"weight/{key}"] = weight.detach()
        # Empty while a float16 scaler has skipped every step so far.
        tensors |= {f"{part}/{key}": value for part, value in optimizer.state[weight].items()}
    if accelerator.scaler is not None:
        scaler = accelerator.scaler.state_dict()
        tensors |= {f"scaler/{part}": torch.tensor(value, dtype=torch.float64) for part, value in scaler.items()}
    return TrainState(step, {key: tensor.cpu().contiguous() for key, tensor in tensors.items()})


def _resume(
    base: StableDiffusion,
    name: str,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    curves: Curves,
    checkpoint: Path,
) -> int:
    """Take up weights, optimizer, loss scale and curves where the checkpoint left them; the step to go on with."""
    state = load_checkpoint(checkpoint)
    if state is None:
        return 0
    curves.loss.copy_(state.tensors["curve/loss"])
    curves.grad_norm.copy_(state.tensors["curve/grad_norm"])
    for key, weight in adapter_weights(base.unet, name).items():
        weight.data.copy_(state.tensors[f"weight/{key}"])
        if f"step/{key}" in state.tensors:
            optimizer.state[weight] = {
                part: state.tensors[f"{part}/{key}"].to(weight.device if part != "step" else "cpu")
                for part in ("step", "exp_avg", "exp_avg_sq")
            }
    if accelerator.scaler is not None:
        old = accelerator.scaler.state_dict()
        accelerator.scaler.load_state_dict(
            {part: type(value)(state.tensors[f"scaler/{part}"].item()) for part, value in old.items()}
        )
    return state.step
