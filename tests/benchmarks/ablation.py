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
from pipeline.evaluation.naturalness import naturalness
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
    paced_alphas,
)
from pipeline.morphing.pacing import even_alphas
from pipeline.params import load_params
from tests.benchmarks.pairs import scenes, trained_keyframes
from tests.benchmarks.shared import open_pocket, paintings

BARE = Recipe(steps=25, inversion_steps=25)
ADAIN = replace(BARE, use_adain=True)
ATTENTION = replace(ADAIN, attention=KeyframeAttention(("up",), 0.6, "inputs"))
LONG = {"steps": 150, "learning_rate": 2e-3}
"""A training that goes on for much longer."""


@dataclass(frozen=True)
class Row:
    """A way to morph. recipe None: the cross-fade. paced: by a coarse pass.

    adapters: by position, at one fixed weight (half of each, all the way), or none; long: from the longer training.
    """

    recipe: Recipe | None
    adapters: Literal["by position", "fixed", "none"] = "by position"
    paced: bool = False
    dtype: str = "float32"
    long: bool = False


ROWS = {
    "cross-fade": Row(None),
    "DDIM, no adapters": Row(BARE, adapters="none"),
    "adapters at fixed weights": Row(BARE, adapters="fixed"),
    "adapters and slerp": Row(BARE),
    "adapters of 150 steps at 2e-3": Row(BARE, long=True),
    "+ AdaIN": Row(ADAIN),
    "+ AdaIN + attention (up, inputs, 0.6)": Row(ATTENTION),
    "attention: all blocks": Row(replace(ADAIN, attention=KeyframeAttention(("down", "mid", "up"), 0.6, "inputs"))),
    "attention: keys and values": Row(replace(ADAIN, attention=KeyframeAttention(("up",), 0.6, "keys-values"))),
    "attention: all steps": Row(replace(ADAIN, attention=KeyframeAttention(("up",), 1.0, "inputs"))),
    "+ AdaIN + attention + perceptual pacing": Row(ATTENTION, paced=True),
    "slerp + perceptual pacing": Row(BARE, paced=True),
    "DDIM, 20 steps": Row(replace(BARE, steps=20, inversion_steps=20, solver="ddim"), paced=True),
    "bfloat16": Row(BARE, paced=True, dtype="bfloat16"),
    "50 steps": Row(replace(BARE, steps=50, inversion_steps=50), paced=True),
    "30 steps": Row(replace(BARE, steps=30, inversion_steps=30), paced=True),
    "20 steps (as it ships)": Row(replace(BARE, steps=20, inversion_steps=20), paced=True),
    "20 steps, 50 of inversion": Row(replace(BARE, steps=20, inversion_steps=50), paced=True),
}
COLUMNS = ("ends under the floor, dB", "way", "variance", "longest / mean", "naturalness", "detail", "evaluations")


@dataclass(frozen=True)
class Pair:
    """Two keyframes, the same with adapters of the longer training, and their pictures (2, 3, H, W)."""

    keyframes: tuple[EncodedKeyframe, EncodedKeyframe]
    longer: tuple[EncodedKeyframe, EncodedKeyframe]
    pictures: torch.Tensor


def morphed(base: Base, pair: Pair, row: Row, frames: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Frames (F, 3, H, W), their alphas, and the evaluations of single samples that they cost."""
    if row.recipe is None:
        alphas = even_alphas(frames)
        return cross_fade(*pair.pictures, alphas.tolist()), alphas, 0
    keyframes = pair.longer if row.long else pair.keyframes
    first, second = (k if row.adapters != "none" else replace(k, adapters=()) for k in keyframes)
    counted = 0

    def count(module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal counted
        counted += len(inputs[0])

    def apart(latents: torch.Tensor) -> torch.Tensor:
        pictures = base.decode(latents)
        return perceptual(pictures[:-1], pictures[1:])

    handle = base.denoiser.register_forward_pre_hook(count)
    noise = invert_keyframes(base, (first, second), row.recipe)
    if row.adapters == "fixed":
        blend = half_of_each(first, second)
        first, second = (replace(keyframe, adapters=((blend, 1.0),)) for keyframe in (first, second))
    alphas = even_alphas(frames)
    if row.paced:
        alphas = paced_alphas(base, first, second, noise, frames, replace(row.recipe, steps=10), 17, apart)
    latents = morph_segment(base, first, second, noise, alphas, row.recipe)
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
    first, second = (keyframe.conditioning for keyframe in pair.keyframes)
    inner = (alphas > 0) & (alphas < 1)
    between = frames[inner], Conditioning.lerp(first, second, alphas[inner])
    natural = naturalness(base, between, (pair.pictures, Conditioning.stack([first, second])))
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
    bases = {dtype: open_pocket(arguments.base, dtype) for dtype in {ROWS[name].dtype for name in arguments.rows}}
    chosen = scenes(arguments.pairs)
    pictures = paintings(chosen).float() / 255
    settings = load_params().train
    keyframes = trained_keyframes(bases["float32"], chosen, settings)
    longer = trained_keyframes(bases["float32"], chosen, settings.model_copy(update=LONG))
    pairs = [
        Pair((keyframes[i], keyframes[i + 1]), (longer[i], longer[i + 1]), pictures[i : i + 2])
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
