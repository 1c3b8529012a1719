"""The learning rate over a training, counted in optimizer steps, whatever the accumulation and the processes."""

import math

from pipeline.sections import TrainSection


def learning_rate(settings: TrainSection, step: int) -> float:
    """The rate of optimizer step `step`: a linear warm-up, then constant, or down to zero by a line or a cosine."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    share = 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return settings.learning_rate * share
