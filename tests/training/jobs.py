"""Jobs of a tiny base with latents drawn on the spot, and trainings of them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from pipeline.base.posterior import Posterior
from pipeline.base.protocol import Base
from pipeline.sections import TrainSection
from pipeline.training import trainer
from pipeline.training.checkpoints import Checkpoints, TrainState
from pipeline.training.examples import Encoded, Example
from pipeline.training.loop import Job, TrainingSetup, train_adapters
from pipeline.training.objectives import objective_of
from tests.training.settings import SETTINGS

Fresh = Callable[[], Base]
Tensors = Mapping[str, torch.Tensor]


def examples(base: Base, first: int = 0, count: int = 2) -> list[Example]:
    made = []
    for number in range(first, first + count):
        generator = torch.Generator().manual_seed(number)
        mean = torch.randn(1, 4, 8, 8, generator=generator).to(base.dtype)
        mirrored = Posterior(mean.flip(-1), torch.full_like(mean, 0.1))
        conditioning = base.condition(["a red hill"]).to(torch.device("cpu"))
        posterior = Posterior(mean, torch.full_like(mean, 0.1))
        encoded = Encoded(posterior, conditioning, mirrored)
        made.append(Example(f"{number}.png", f"digest {number}", encoded, "a red hill"))
    return made


def jobs(base: Base, count: int = 3) -> list[Job]:
    return [Job(f"job {number}", f"identity-{number}", examples(base, 10 * number)) for number in range(count)]


def trained(
    base: Base,
    folder: Path,
    settings: TrainSection = SETTINGS,
    wanted: list[Job] | None = None,
    every: int = 2,
    **options: object,
) -> Mapping[str, TrainState]:
    """The states of a run's jobs at its end. options: as `TrainingSetup` takes them."""
    options = {"objective": objective_of(settings), "checkpoint_every": every, **options}
    setup = TrainingSetup(base, settings, base.condition([""]), checkpoints=Checkpoints(folder), **options)
    return train_adapters(setup, wanted or jobs(base))


def weights(states: Mapping[str, TrainState]) -> dict[str, torch.Tensor]:
    return {
        name: torch.cat([state.tensors["weight/down"], state.tensors["weight/up"]]) for name, state in states.items()
    }


class Killed(BaseException):
    """Stands for a SIGKILL: nothing may run after it."""


def kill_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Kill a training when it draws for a step."""
    plain = trainer.draw_batch

    def draw(own: object, settings: object, path: object, empty: object, at: int, places: object) -> object:
        if at == step:
            raise Killed
        return plain(own, settings, path, empty, at, places)

    patch.setattr(trainer, "draw_batch", draw)
