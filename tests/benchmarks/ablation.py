"""What each part of a morph is worth: `python -m tests.benchmarks.ablation [--pairs 12] [--out docs]`.

Runs every row on the same pairs of held-out paintings, with the same adapters, and writes the table of means and a
sheet of strips for each pair into `<out>/ablation/`. What they say stands in docs/ablation.md.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from pipeline.adapters.mixing import Adapter
from pipeline.base.conditioning import Conditioning
from pipeline.base.protocol import Base
from pipeline.distances.perceptual import perceptual
from pipeline.evaluation.fidelity import psnr
from pipeline.evaluation.naturalness import naturalness, picture_errors
from pipeline.evaluation.smoothness import smoothness
from pipeline.frames.sheets import strip
from pipeline.frames.tensors import to_arrays
from pipeline.morphing.diffmorpher import KeyframeAttention
from pipeline.morphing.engine import (
    EncodedKeyframe,
    Recipe,
    cross_fade,
    invert_keyframes,
    morph_segment,
)
from pipeline.morphing.pacing import even_alphas
from pipeline.params import load_params
from pipeline.sampling.solver import Solver
from tests.benchmarks.pairs import scenes, trained_keyframes
from tests.benchmarks.shared import open_pocket, paced_segment, paintings

BARE = Recipe()
ADAIN = replace(BARE, use_adain=True)
ATTENTION = replace(ADAIN, attention=KeyframeAttention(("up",), 0.6, "inputs"))
TRAININGS: dict[str, dict[str, object]] = {
    "as shipped": {},
    "60 at 1e-3": {"steps": 60, "batch": 4, "learning_rate": 1e-3, "b_rate": 1.0, "schedule": "constant"},
    "150 at 2e-3": {"steps": 150, "batch": 4, "learning_rate": 2e-3, "b_rate": 1.0, "schedule": "constant"},
}


@dataclass(frozen=True)
class Row:
    """A way to morph. recipe None: the cross-fade. spare: frames that pacing makes and leaves out; None: no pacing.

    adapters: by position, at one fixed weight (half of each, all the way), or none; training: which of TRAININGS.
    """

    recipe: Recipe | None
    adapters: Literal["by position", "fixed", "none"] = "by position"
    spare: int | None = None
    dtype: str = "float32"
    training: str = "as shipped"


def of_steps(steps: int, inversion_steps: int | None = None, solver: Solver = "midpoint") -> Row:
    """A paced row of other steps."""
    return Row(Recipe(steps, inversion_steps or steps, solver), spare=6)


ROWS = {
    "cross-fade": Row(None),
    "no adapters": Row(BARE, adapters="none"),
    "adapters at fixed weights": Row(BARE, adapters="fixed"),
    "adapters by position": Row(BARE),
    "adapters of 60 steps at 1e-3": Row(BARE, training="60 at 1e-3"),
    "adapters of 150 steps at 2e-3": Row(BARE, training="150 at 2e-3"),
    "+ AdaIN": Row(ADAIN),
    "+ AdaIN + attention (up, inputs, 0.6)": Row(ATTENTION),
    "attention: all blocks": Row(replace(ADAIN, attention=KeyframeAttention(("down", "mid", "up"), 0.6, "inputs"))),
    "attention: keys and values": Row(replace(ADAIN, attention=KeyframeAttention(("up",), 0.6, "keys-values"))),
    "attention: all steps": Row(replace(ADAIN, attention=KeyframeAttention(("up",), 1.0, "inputs"))),
    "guidance 2": Row(replace(BARE, guidance=2.0)),
    "+ AdaIN + attention + pacing": Row(ATTENTION, spare=6),
    "pacing, none spare": Row(BARE, spare=0),
    "pacing, 6 spare (as it ships)": Row(BARE, spare=6),
    "pacing, 12 spare": Row(BARE, spare=12),
    "bfloat16": Row(BARE, spare=6, dtype="bfloat16"),
    "DDIM, 20 steps": of_steps(20, solver="ddim"),
    "6 steps": of_steps(6),
    "20 steps": of_steps(20),
    "10 steps, 20 of inversion": of_steps(10, 20),
}
COLUMNS = ("ends under the floor, dB", "way", "variance", "longest / mean", "naturalness", "detail", "evaluations")


@dataclass(frozen=True)
class Pair:
    """Two keyframes with the adapters of each training, and their pictures (2, 3, H, W)."""

    keyframes: dict[str, tuple[EncodedKeyframe, EncodedKeyframe]]
    pictures: torch.Tensor


def morphed(base: Base, pair: Pair, row: Row, frames: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Frames (F, 3, H, W), their alphas, and the evaluations of single samples that they cost."""
    if row.recipe is None:
        alphas = even_alphas(frames)
        return cross_fade(*pair.pictures, alphas.tolist()), alphas, 0
    first, second = pair.keyframes[row.training]
    if row.adapters == "none":
        first, second = replace(first, adapters=()), replace(second, adapters=())
    recipe = row.recipe
    counted = 0

    def count(module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal counted
        counted += len(inputs[0])

    handle = base.denoiser.register_forward_pre_hook(count)
    noise = invert_keyframes(base, (first, second), recipe)
    if row.adapters == "fixed":
        blend = half_of_each(first, second)
        first, second = (replace(keyframe, adapters=((blend, 1.0),)) for keyframe in (first, second))
    if row.spare is not None:
        alphas, latents = paced_segment(base, (first, second), noise, frames, row.spare, recipe)
    else:
        alphas = even_alphas(frames)
        latents = morph_segment(base, first, second, noise, alphas, recipe)
    handle.remove()
    return base.decode(latents).cpu(), alphas, counted


def half_of_each(first: EncodedKeyframe, second: EncodedKeyframe) -> Adapter:
    """One adapter whose product is the mean of both: their A above each other, half of each B side by side."""
    ((one, _),), ((two, _),) = first.adapters, second.adapters
    if one.scale != two.scale:
        raise ValueError("both adapters need one scale")
    other = two.factors
    factors = {
        name: (torch.cat([down, other[name][0]]), torch.cat([up / 2, other[name][1] / 2], dim=1))
        for name, (down, up) in one.factors.items()
    }
    return Adapter(factors, one.scale)


def figures(base: Base, pair: Pair, row: Row, frames: torch.Tensor, alphas: torch.Tensor) -> list[float]:
    """The table's columns but the last."""
    floor = psnr(base.decode(base.encode(pair.pictures).mean).cpu(), pair.pictures)
    gap = float((floor - psnr(frames[[0, -1]], pair.pictures)).mean()) if row.recipe else float("nan")
    steps = smoothness(perceptual(frames[:-1], frames[1:]))
    first, second = (keyframe.conditioning for keyframe in pair.keyframes["as shipped"])
    inner = (alphas > 0) & (alphas < 1)
    between = frames[inner], Conditioning.lerp(first, second, alphas[inner])
    ends = pair.pictures, Conditioning.stack([first, second])
    natural = naturalness(picture_errors(base, *between), picture_errors(base, *ends))
    return [gap, steps.sum, steps.variance, steps.max_over_mean, natural, detail(frames)]


def detail(frames: torch.Tensor) -> float:
    """Mean absolute difference of neighbouring pixels in frames between, over that of the ends; softer ones: below 1.

    Naturalness does not see it: soft pictures are no less likely.
    """
    grey = frames.mean(dim=1)
    across, down = grey.diff(dim=2).abs().mean(dim=(1, 2)), grey.diff(dim=1).abs().mean(dim=(1, 2))
    of_frame = across + down
    return float(of_frame[1:-1].mean() / of_frame[[0, -1]].mean())


def table(found: dict[str, np.ndarray]) -> str:
    """Means over the pairs, as Markdown."""
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    formats: tuple[Callable[[float], str], ...] = (
        "{:.2f}".format, "{:.3f}".format, "{:.2e}".format, "{:.2f}".format, "{:.3f}".format, "{:.2f}".format,
        "{:.0f}".format,
    )  # fmt: skip
    for name, values in found.items():
        cells = ["" if np.isnan(value) else shown(value) for shown, value in zip(formats, values.mean(0), strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run every row, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="models/pocket")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    bases = {
        dtype: open_pocket(arguments.base, dtype)
        for dtype in {"float32", *(ROWS[name].dtype for name in arguments.rows)}
    }
    chosen = scenes(arguments.pairs)
    pictures = paintings(chosen).float() / 255
    settings = load_params().train
    names = [
        "as shipped",
        *{ROWS[name].training: None for name in arguments.rows if ROWS[name].training != "as shipped"},
    ]
    trained = {
        name: trained_keyframes(bases["float32"], chosen, settings.model_copy(update=TRAININGS[name])) for name in names
    }
    pairs = [
        Pair({name: (made[i], made[i + 1]) for name, made in trained.items()}, pictures[i : i + 2])
        for i in range(0, 2 * arguments.pairs, 2)
    ]
    found: dict[str, list[list[float]]] = {name: [] for name in arguments.rows}
    folder = arguments.out / "ablation"
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(pairs) * len(found), unit="morph") as bar:
        for number, pair in enumerate(pairs):
            shown = {}
            for name in found:
                row = ROWS[name]
                frames, alphas, evaluations = morphed(bases[row.dtype], pair, row, arguments.frames)
                found[name].append([*figures(bases["float32"], pair, row, frames, alphas), evaluations])
                shown[name] = to_arrays(frames)
                bar.update()
            picture = strip(list(shown.items()), keyframes=[0, arguments.frames - 1], columns=9, cell=96)
            picture.save(folder / f"{number + 1:02}.webp", quality=88)
    text = table({name: np.array(rows) for name, rows in found.items()})
    print(text)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
