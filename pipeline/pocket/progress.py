"""What both trainings of the pocket share: the schedule, the moving average, and resuming where they were."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

LogMetrics = Callable[[dict[str, float], int], None]
PREVIEW_EVERY = 1000
LOOKED_AT = 9
"""The step at which every weight must have a gradient: by then a ControlNet's zeros have moved, too."""


@dataclass
class Training:
    """A model in training with its optimizers and the moving average of its weights."""

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    steps: int
    ema_decay: float
    checkpoint: Path
    step: int = 0
    ema: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["peak"] = group["lr"]
        self.ema = {name: weight.detach().clone() for name, weight in self.model.state_dict().items()}
        if self.checkpoint.exists():
            self._load()

    def run(
        self,
        loss_at: Callable[[int], torch.Tensor],
        log: LogMetrics,
        label: str,
        preview: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Train to the last step. `loss_at(step)` must draw its randomness from the step, so that resuming is exact.

        `preview(step)` is called now and then, and at the end, with the averaged weights in the model.
        """
        bar = tqdm(range(self.step, self.steps), initial=self.step, total=self.steps, desc=label, unit="step")
        for step in bar:
            for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
                group["lr"] = group["peak"] * warmed_cosine(step, self.steps)
            loss = loss_at(step)
            loss.backward()
            if step == LOOKED_AT:
                self._require_gradients(label)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
            self.model.zero_grad(set_to_none=True)
            self._average(step)
            self.step = step + 1
            if self.step % 50 == 0:
                value = loss.item()
                if not math.isfinite(value):
                    raise FloatingPointError(f"{label}: the loss is {value} at step {step}; try a lower rate")
                bar.set_postfix(loss=f"{value:.4f}")
                log({"loss": value, "grad_norm": float(norm)}, self.step)
            if self.step % 500 == 0:
                self.save()
            if self.step % PREVIEW_EVERY == 0 or self.step == self.steps:
                with self.averaged():
                    preview(self.step)
        self.save()

    def _require_gradients(self, label: str) -> None:
        """Layers that get no gradient look as if they trained: weight decay moves them, and the loss falls by the rest.

        `torch.compile` (2.13, inductor, on a CPU) left out the gradients of all inner layers of the UNet.
        """
        idle = [
            name
            for name, weight in self.model.named_parameters()
            if weight.requires_grad and (weight.grad is None or not bool(weight.grad.any()))
        ]
        if idle:
            raise RuntimeError(f"{label}: {len(idle)} weights get no gradient, {idle[0]} first")

    def _average(self, step: int) -> None:
        decay = min(self.ema_decay, (1 + step) / (10 + step))  # a young average forgets its random start
        for name, weight in self.model.state_dict().items():
            if weight.is_floating_point():
                self.ema[name].lerp_(weight.detach(), 1 - decay)
            else:
                self.ema[name].copy_(weight)

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "ema": self.ema,
            "step": self.step,
        }
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True, map_location=next(self.model.parameters()).device)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.ema, self.step = state["ema"], state["step"]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in the model, in evaluation mode, for the while."""
        trained = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        self.use_average()
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()
            self.model.load_state_dict(trained)

    def use_average(self) -> None:
        """Put the averaged weights into the model."""
        self.model.load_state_dict(self.ema)


def warmed_cosine(step: int, steps: int) -> float:
    """Share of the peak rate: a linear warm-up over 2 % of the steps, then a cosine down to 1 %."""
    warmup = max(1, steps // 50)
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def batches(count: int, batch: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Index batches over shuffled epochs. Deterministic, so a resumed training skips to where it was."""
    generator = torch.Generator().manual_seed(seed)
    queue = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while queue.numel() < batch:
            queue = torch.cat([queue, torch.randperm(count, generator=generator)])
        yield queue[:batch]
        queue = queue[batch:]
