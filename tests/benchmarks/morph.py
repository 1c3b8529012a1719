"""The engine against the frame-by-frame reference: `python -m tests.benchmarks.morph [--frames 16] [--steps 50]`.

One run, side by side, on the same keyframes, adapters and device. The reference is the algorithm as a paper states it
(`tests/reference.py`): one latent at a time, weights merged for each frame, attention inputs stored, and a full second
pass for pacing. Prints times, the ratio, UNet evaluations, and how even and how true both came out.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
from diffusers import DDIMScheduler

from pipeline.base.protocol import Base
from pipeline.distances.perceptual import perceptual
from pipeline.evaluation.fidelity import psnr
from pipeline.film import settings_of
from pipeline.morphing.diffmorpher import KeyframeAttention
from pipeline.morphing.engine import Recipe, invert_keyframes
from pipeline.morphing.pacing import even_alphas
from pipeline.params import load_params
from tests.benchmarks.pairs import scenes, trained_keyframes
from tests.benchmarks.shared import open_pocket, paced_segment, paintings
from tests.reference import FrameByFrame, repaced_alphas


@dataclass
class Outcome:
    """What one way took and gave."""

    seconds: float
    evaluations: int
    frames: torch.Tensor


def measured(base: Base, work: Callable[[], torch.Tensor]) -> Outcome:
    """Time of the work, its evaluations of single samples, and the decoded frames."""
    counted = 0

    def count(module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal counted
        counted += len(inputs[0])

    handle = base.denoiser.register_forward_pre_hook(count)
    start = time.perf_counter()
    latents = work()
    if base.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    handle.remove()
    return Outcome(seconds, counted, base.decode(latents))


def table_row(name: str, outcome: Outcome, ends: torch.Tensor, slowest: Outcome) -> str:
    """One line of the table."""
    steps = perceptual(outcome.frames[:-1], outcome.frames[1:])
    true = float(psnr(outcome.frames[[0, -1]], ends.to(outcome.frames.device)).mean())
    return (
        f"{name}: {outcome.seconds:.1f} s, {slowest.seconds / outcome.seconds:.1f} times the reference's speed, "
        f"{outcome.evaluations} evaluations; longest over mean step {float(steps.max() / steps.mean()):.2f}, "
        f"way {float(steps.sum()):.3f}, ends {true:.2f} dB"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="models/pocket")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    params = load_params()
    base = open_pocket(arguments.base)
    chosen = scenes(1)
    first, second = trained_keyframes(base, chosen, params.train)
    ends = paintings(chosen).float() / 255
    recipe = Recipe(
        steps=arguments.steps,
        inversion_steps=arguments.steps,
        solver="ddim",
        use_adain=True,
        attention=KeyframeAttention(("up",), 0.6, "inputs"),
    )

    def apart(latents: torch.Tensor) -> torch.Tensor:
        pictures = base.decode(latents)
        return perceptual(pictures[:-1], pictures[1:])

    def reference() -> torch.Tensor:
        scheduler = DDIMScheduler.from_pretrained(arguments.base, subfolder="scheduler")
        way = FrameByFrame(base, first, second, recipe, scheduler)
        measured_at = even_alphas(arguments.frames)
        return way.frames(
            repaced_alphas(measured_at, apart(way.frames(measured_at.tolist())), arguments.frames).tolist()
        )

    def ours(recipe: Recipe, spare: int) -> torch.Tensor:
        noise = invert_keyframes(base, (first, second), recipe)
        return paced_segment(base, (first, second), noise, arguments.frames, spare, recipe)[1]

    settings = settings_of(params.morph)
    ours(replace(recipe, steps=2, inversion_steps=2), 0)  # warm up
    ways: tuple[Callable[[], torch.Tensor], ...] = (
        reference,
        lambda: ours(recipe, settings.pacing_spare),
        lambda: ours(settings.recipe, settings.pacing_spare),
    )
    # In turns, so that a busy machine is busy for all.
    taken = [[measured(base, way) for way in ways] for _ in range(arguments.rounds)]
    slowest, same, default = (
        replace(outcomes[0], seconds=median(outcome.seconds for outcome in outcomes))
        for outcomes in zip(*taken, strict=True)
    )
    print(f"{arguments.frames} frames, {arguments.steps} steps, float32, {base.device.type}; medians of the times")
    print(table_row("frame by frame, with its second pass", slowest, ends, slowest))
    print(table_row("the engine, the same steps and options", same, ends, slowest))
    print(table_row("the engine, as it ships", default, ends, slowest))


if __name__ == "__main__":
    main()
