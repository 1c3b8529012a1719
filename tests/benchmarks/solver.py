"""What steps and solver are worth in a morph: `python -m tests.benchmarks.solver [--pairs 4] [--frames 9]`.

Held-out pairs with trained adapters, frames at even alphas. Ends are compared with the drawn latents, decoded at once;
frames between with those of 100 steps of the midpoint rule. Then, how even 16 frames are that are chosen out of more.
Prints means over the pairs as Markdown.
"""

import argparse
from collections.abc import Callable

import torch
from tqdm import tqdm

from pipeline.base.protocol import Base
from pipeline.distances.perceptual import perceptual
from pipeline.evaluation.fidelity import psnr
from pipeline.morphing.engine import EncodedKeyframe, Recipe, invert_keyframes, morph_segment
from pipeline.morphing.pacing import even_alphas
from pipeline.params import load_params
from tests.benchmarks.pairs import scenes, trained_keyframes
from tests.benchmarks.shared import open_pocket, paced_segment

Pair = tuple[EncodedKeyframe, EncodedKeyframe]
REFERENCE = Recipe(100, 100)
RECIPES = {
    **{f"midpoint, {steps} steps": Recipe(steps, steps) for steps in (6, 8, 10, 12)},
    **{f"DDIM, {steps} steps": Recipe(steps, steps, solver="ddim") for steps in (20, 50)},
}
SPARE = (0, 3, 6, 9, 15)


def decoded(base: Base, latents: torch.Tensor) -> torch.Tensor:
    """Pictures (N, 3, H, W), one after the other."""
    return torch.cat([base.decode(latent[None]) for latent in latents]).cpu()


def contrast(pictures: torch.Tensor) -> float:
    """Mean absolute difference of neighbouring pixels: soft pictures have less."""
    grey = pictures.mean(dim=1)
    return float(grey.diff(dim=2).abs().mean() + grey.diff(dim=1).abs().mean())


def made(base: Base, pair: Pair, recipe: Recipe, alphas: torch.Tensor) -> torch.Tensor:
    """The frames (F, 3, H, W) of a pair."""
    noise = invert_keyframes(base, pair, recipe)
    return decoded(base, morph_segment(base, *pair, noise, alphas, recipe))


def evaluations(base: Base, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """What the work gives, and how many samples it sent through the denoiser."""
    counted = 0

    def count(module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal counted
        counted += len(inputs[0])

    handle = base.denoiser.register_forward_pre_hook(count)
    found = work()
    handle.remove()
    return found, counted


def solver_rows(base: Base, pair: Pair, alphas: torch.Tensor) -> dict[str, list[float]]:
    """By recipe: evaluations, ends and frames between in dB, contrast of those between over the reference's."""
    own = decoded(base, torch.stack([keyframe.latents for keyframe in pair]))
    reference = made(base, pair, REFERENCE, alphas)
    rows = {}
    for name, recipe in RECIPES.items():
        frames, count = evaluations(base, lambda recipe=recipe: made(base, pair, recipe, alphas))
        rows[name] = [
            count,
            float(psnr(frames[[0, -1]], own).mean()),
            float(psnr(frames[1:-1], reference[1:-1]).mean()),
            contrast(frames[1:-1]) / contrast(reference[1:-1]),
        ]
    return rows


def pacing_rows(base: Base, pair: Pair, recipe: Recipe, frames: int) -> dict[str, list[float]]:
    """By the number of spare frames: all evaluations, and the longest step over the mean one."""
    rows = {}
    for spare in SPARE:

        def work(spare: int = spare) -> torch.Tensor:
            noise = invert_keyframes(base, pair, recipe)
            return decoded(base, paced_segment(base, pair, noise, frames, spare, recipe)[1])

        pictures, count = evaluations(base, work)
        distances = perceptual(pictures[:-1], pictures[1:])
        rows[f"{spare} spare frames"] = [count, float(distances.max() / distances.mean())]
    return rows


def table(columns: tuple[str, ...], rows: dict[str, list[list[float]]]) -> str:
    """Means over the pairs."""
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, values in rows.items():
        means = torch.tensor(values).mean(0).tolist()
        cells = [f"{means[0]:.0f}", *(f"{mean:.1f}" if mean > 10 else f"{mean:.3f}" for mean in means[1:])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="models/pocket")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--frames", type=int, default=9)
    arguments = parser.parse_args()
    base = open_pocket(arguments.base)
    keyframes = trained_keyframes(base, scenes(arguments.pairs), load_params().train)
    solvers: dict[str, list[list[float]]] = {}
    paces: dict[str, list[list[float]]] = {}
    for first in tqdm(range(0, len(keyframes), 2), unit="pair"):
        pair = keyframes[first], keyframes[first + 1]
        for name, row in solver_rows(base, pair, even_alphas(arguments.frames)).items():
            solvers.setdefault(name, []).append(row)
        for name, row in pacing_rows(base, pair, Recipe(), 16).items():
            paces.setdefault(name, []).append(row)
    print(f"{arguments.pairs} pairs, {arguments.frames} frames, {base.device.type}")
    print(table(("evaluations", "ends, dB", "between, dB", "contrast"), solvers))
    print()
    print(table(("evaluations", "longest / mean step"), paces))


if __name__ == "__main__":
    main()
