"""Two pictures to a morph on a full-size base: `python -m tests.benchmarks.card sd15 [--dtype bfloat16] [--profile]`.

Random weights of the true shape, everything loaded: two adapters of 200 steps of one sample, side by side, then 16
frames of 50 steps without a baseline, decoded. Prints seconds, peak memory, and the share of the card's own peak, which
is measured by one large matrix product: the floating-point operations of the denoiser alone are counted.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from pipeline.base.device import choose_device, torch_dtype
from pipeline.base.noise_path import VariancePreserving
from pipeline.base.protocol import Base
from pipeline.film import Film, FilmSettings, Keyframe, Recipe
from pipeline.landscapes.world import caption
from pipeline.params import load_params
from pipeline.sections import BaseSection, TrainSection
from tests.benchmarks.full_size import SHAPES, Shape, base_of, build
from tests.benchmarks.pairs import scenes, trained_keyframes
from tests.benchmarks.shared import paintings
from tests.benchmarks.train import seconds

PUBLISHED = {"batch": 1, "learning_rate": 1e-4, "b_rate": 1.0, "schedule": "constant", "rank": 16, "alpha": 16.0}
"""What published tools train adapters of single pictures with."""
GRADIENTS = 2
"""Operations of a step for each of the forward pass: as many for the gradient of what goes in. The base's weights have
none, and the adapters' own are few."""


@dataclass(frozen=True)
class Part:
    """What one part of the work took. operations: floating-point ones of the denoiser."""

    seconds: float
    peak: int
    operations: float

    def row(self, name: str, most: float) -> str:
        """A line of the table. most: operations a second that the card can do."""
        share = self.operations / self.seconds / most
        return f"| {name} | {self.seconds:.2f} | {self.peak / 1e9:.1f} | {share:.0%} |"


def build_base(shape: Shape, dtype: str, device: torch.device) -> Base:
    """The base with random weights, made on the device."""
    kind = torch_dtype(
        BaseSection(source="made here", revision=None, config=None, dtype=dtype, clip_skip=0, adapters=())
    )
    torch.manual_seed(0)
    with torch.device(device):
        parts = build(shape)
    for model in (parts.unet, parts.vae, parts.text_encoder, parts.text_encoder_2):
        if model is not None:
            model.to(device, kind)
    path = VariancePreserving.from_scheduler_config(parts.scheduler.config)
    return base_of(shape, parts, path, str(device))


def most_operations(dtype: torch.dtype, device: torch.device, side: int = 8192) -> float:
    """Operations a second of a large matrix product."""
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    taken = []
    for _ in range(8):
        start = time.perf_counter()
        one @ other
        wait(device)
        taken.append(time.perf_counter() - start)
    return 2 * side**3 / median(taken[3:])


def operations(base: Base, shape: Shape) -> float:
    """Floating-point operations of the denoiser for one sample."""
    conditioning = base.condition([""])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        base.predict(torch.zeros(1, *shape.latents, device=base.device), torch.tensor([500]), conditioning)
    return float(counter.get_total_flops())


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def measured(base: Base, work: Callable[[], None], operations: float) -> Part:
    """One call of `work`, and the most memory of the device that it had."""
    on_card = base.device.type == "cuda"
    if on_card:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    taken = seconds(base, work)
    return Part(taken, torch.cuda.max_memory_reserved() if on_card else 0, operations)


def profiled(base: Base, name: str, work: Callable[[], None]) -> None:
    """Print how busy the device is, and what with."""
    device = ProfilerActivity.CUDA if base.device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[ProfilerActivity.CPU, device]) as found:
        taken = seconds(base, work)
    kernels = sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)
    busy = sum(event.self_device_time_total for event in kernels if event.device_type.name == "CUDA") / 1e6
    launched = sum(
        event.count for event in kernels if event.key in ("cudaLaunchKernel", "cuLaunchKernelEx", "cudaLaunchKernelExC")
    )
    print(f"{name}: {taken:.2f} s under the profiler, kernels {busy:.2f} s, {launched} launches")
    for event in [event for event in kernels if event.device_type.name == "CUDA"][:12]:
        print(f"  {event.self_device_time_total / 1e6 / max(busy, 1e-9):4.0%} {event.count:6d} {event.key[:100]}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "tf32", "bfloat16", "float16"])
    parser.add_argument("--trained", type=int, default=200)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--solver", default="ddim", choices=["ddim", "midpoint"])
    parser.add_argument("--pacing", default="linear", choices=["linear", "perceptual"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="of 10 steps of training and of sampling")
    arguments = parser.parse_args()
    shape, device = SHAPES[arguments.shape], choose_device("auto")
    base = build_base(shape, arguments.dtype, device)
    most, each = most_operations(base.dtype, device), operations(base, shape)
    settings = load_params().train.model_copy(update=PUBLISHED | {"steps": arguments.trained, "noise_offset": 0.1})
    recipe = Recipe(arguments.steps, arguments.steps, arguments.solver)
    film = FilmSettings(recipe, arguments.frames, arguments.pacing)
    chosen = scenes(1)
    painted = paintings(chosen, shape.side)
    pictures = painted.float() / 255
    keyframes: list[Keyframe] = []

    def train(settings: TrainSection) -> None:
        trained = trained_keyframes(base, chosen, settings, painted)
        keyframes[:] = [
            Keyframe(picture, caption(scene), keyframe.adapters)
            for picture, scene, keyframe in zip(pictures, chosen, trained, strict=True)
        ]

    def morph(film: FilmSettings) -> None:
        for _ in Film(base, keyframes, film):
            pass

    train(settings.model_copy(update={"steps": 2}))  # warm up
    morph(replace(film, recipe=replace(recipe, steps=2, inversion_steps=2)))
    evaluations = (2 + arguments.frames + (film.pacing_spare if film.pacing == "perceptual" else 0)) * arguments.steps
    found: dict[str, list[Part]] = {"two adapters": [], "the morph": []}
    for _ in range(arguments.rounds):
        counted = 2 * arguments.trained * each * (1 + GRADIENTS)
        found["two adapters"].append(measured(base, lambda: train(settings), counted))
        found["the morph"].append(measured(base, lambda: morph(film), evaluations * each))
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    print(f"{shape.name}, {shape.side}x{shape.side}, {arguments.dtype}, {name}: torch {torch.__version__}")
    print(f"{each / 1e12:.2f} TFLOP an evaluation; a matrix product of the card: {most / 1e12:.0f} TFLOP/s")
    print("| | seconds | peak GB | of the card's peak |\n|---|---|---|---|")
    for part, rounds in found.items():
        print(sorted(rounds, key=lambda one: one.seconds)[len(rounds) // 2].row(part, most))
    whole = [sum(part.seconds for part in parts) for parts in zip(*found.values(), strict=True)]
    print(f"all of it: {median(whole):.2f} s ({min(whole):.2f} to {max(whole):.2f}, {arguments.rounds} rounds)")
    if arguments.profile:
        profiled(base, "5 steps of training", lambda: train(settings.model_copy(update={"steps": 5})))
        few = replace(film, recipe=replace(recipe, steps=5, inversion_steps=5))
        profiled(base, "a morph of 5 steps", lambda: morph(few))


if __name__ == "__main__":
    main()
