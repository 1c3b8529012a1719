"""Two pictures to a morph, all of it: `python -m tests.benchmarks.pair [--frames 16] [--rounds 5]`.

From an opened base to decoded frames: encoding, both adapters, inversion, pacing, frames. Side by side in turns: the
settings of params.yaml, and those that shipped before them (60 steps of plain LoRA, DDIM of 20 steps, pacing by a pass
of 17 frames in 8 steps). Prints medians of seconds, and how even the frames are.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from statistics import median

import torch

from pipeline.base.protocol import Base
from pipeline.distances.perceptual import perceptual
from pipeline.film import Film, Keyframe, settings_of
from pipeline.landscapes.world import caption
from pipeline.morphing.engine import EncodedKeyframe, Recipe, invert_keyframes, morph_segment
from pipeline.morphing.pacing import even_alphas
from pipeline.params import load_params
from pipeline.sections import TrainSection
from tests.benchmarks.pairs import scenes, trained_keyframes
from tests.benchmarks.shared import open_pocket, paintings
from tests.reference import repaced_alphas

FORMER_TRAINING = {"steps": 60, "batch": 4, "learning_rate": 1e-3, "b_rate": 1.0, "schedule": "constant"}
FORMER = Recipe(20, 20, "ddim")

Pair = tuple[EncodedKeyframe, EncodedKeyframe]


@dataclass
class Times:
    """Seconds of each round, and the frames of the last."""

    training: list[float] = field(default_factory=list)
    morph: list[float] = field(default_factory=list)
    frames: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def row(self, name: str) -> str:
        """A line of the table."""
        steps = perceptual(self.frames[:-1], self.frames[1:])
        whole = median(a + b for a, b in zip(self.training, self.morph, strict=True))
        cells = [f"{median(self.training):.1f}", f"{median(self.morph):.1f}", f"{whole:.1f}"]
        return f"| {name} | {' | '.join(cells)} | {float(steps.max() / steps.mean()):.2f} | {float(steps.sum()):.3f} |"


def former(base: Base, pair: Pair, frames: int) -> Iterator[torch.Tensor]:
    """The frames as they were made before."""
    noise = invert_keyframes(base, pair, FORMER)
    measured = even_alphas(17)
    coarse = base.decode(morph_segment(base, *pair, noise, measured, Recipe(8, 8, "ddim")))
    alphas = repaced_alphas(measured, perceptual(coarse[:-1], coarse[1:]), frames)
    for latent in morph_segment(base, *pair, noise, alphas, FORMER):
        yield base.decode(latent[None])[0]


def timed(base: Base, times: Times, settings: TrainSection, morph: Callable[[Pair], Iterable[torch.Tensor]]) -> None:
    """One round; `morph` gives the decoded frames."""
    chosen = scenes(1)
    start = time.perf_counter()
    first, second = trained_keyframes(base, chosen, settings)
    _wait(base)
    trained = time.perf_counter()
    times.frames = torch.stack([picture.cpu() for picture in morph((first, second))])
    times.training.append(trained - start)
    times.morph.append(time.perf_counter() - trained)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="models/pocket")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    params, base = load_params(), open_pocket(arguments.base)
    settings = replace(settings_of(params.morph), frames=arguments.frames)
    chosen = scenes(1)
    pictures = paintings(chosen).float() / 255

    def shipped(pair: Pair) -> Iterator[torch.Tensor]:
        given = [
            Keyframe(picture, caption(scene), keyframe.adapters)
            for picture, scene, keyframe in zip(pictures, chosen, pair, strict=True)
        ]
        for frame in Film(base, given, settings):
            yield frame.picture

    ways = {
        "before": (params.train.model_copy(update=FORMER_TRAINING), lambda pair: former(base, pair, arguments.frames)),
        "as it ships": (params.train, shipped),
    }
    timed(base, Times(), params.train.model_copy(update={"steps": 2}), shipped)  # warm up
    found = {name: Times() for name in ways}
    for _ in range(arguments.rounds):
        for name, (training, morph) in ways.items():
            timed(base, found[name], training, morph)
    ratios = [(old[0] + old[1]) / (new[0] + new[1]) for old, new in zip(
        *(zip(times.training, times.morph, strict=True) for times in found.values()), strict=True)]  # fmt: skip
    print(f"{arguments.frames} frames, {arguments.rounds} rounds in turns, {base.device.type}; medians")
    print("| | training, s | morph, s | all, s | longest / mean step | way |\n|---|---|---|---|---|---|")
    print("\n".join(times.row(name) for name, times in found.items()))
    print(f"{median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")


def _wait(base: Base) -> None:
    if base.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
