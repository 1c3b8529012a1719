"""What adapters with another objective are worth on the pocket: `python -m tests.benchmarks.objectives
[--paint data/raw/paintings] [--consistency FILE] [--smooth FILE] [--out docs/objectives]`.

paint: write the set that the files are trained on, 3,000 paintings with captions.
consistency: how far samples of few evaluations lie from unseen paintings, beside those of the solvers, and a sheet.
smooth: how even the way between captions is over 50 pairs, and twelve morphs with the base's adapters and without.
docs/objectives.md says how the files were trained and what was found.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from pipeline.adapted_base import open_adapted_base
from pipeline.base.checking import base_digest
from pipeline.base.device import choose_device
from pipeline.base.digests import file_sha256
from pipeline.base.protocol import Base
from pipeline.frames.sheets import grid, strip
from pipeline.frames.tensors import to_arrays
from pipeline.landscapes.painter import paint
from pipeline.landscapes.world import Scene, caption
from pipeline.params import load_params
from pipeline.sampling.captions import sample_captions
from pipeline.sampling.consistency import Sampler
from pipeline.sections import BaseAdapter, BaseSection
from tests.benchmarks.ablation import ROWS, Pair, figures, morphed, table
from tests.benchmarks.classifier import features, frechet_distance, train_reader
from tests.benchmarks.pairs import scenes as pair_scenes
from tests.benchmarks.pairs import trained_keyframes
from tests.benchmarks.pocket import FIRST, MEASURED, PAIRS, POINTS, READ, SECOND, TO_READ, jumps
from tests.benchmarks.shared import open_pocket, paintings, scenes_from

SHOWN, TOGETHER = 6, 50
LEARNED_FROM, LEARNED = 50_000_000, 3000
"""Seeds of the set that is trained on: of the kind that the pocket was trained on, and none of those measured."""


@dataclass(frozen=True)
class Way:
    """A way to sample: evaluations are `steps` of DDIM and consistency, one more of the midpoint rule."""

    solver: Sampler
    steps: int
    distilled: bool = False
    guidance: float = 1.0
    fresh: float = 0.0


WAYS = {
    "DDIM, 4 evaluations": Way("ddim", 4),
    "midpoint, 4 evaluations": Way("midpoint", 3),
    "consistency, 2 evaluations": Way("consistency", 2, distilled=True),
    "consistency, 4 evaluations": Way("consistency", 4, distilled=True),
    "consistency, 8 evaluations": Way("consistency", 8, distilled=True),
    "consistency, 4 evaluations, fresh noise": Way("consistency", 4, distilled=True, fresh=1.0),
    "the base by consistency's sampler, 4 evaluations": Way("consistency", 4),
    "DDIM, 20 evaluations": Way("ddim", 20),
    "midpoint, 21 evaluations": Way("midpoint", 20),
}
"""None with guidance, which costs twice the evaluations; what it is worth is in the adapter."""
SHEET = ("DDIM, 4 evaluations", "midpoint, 4 evaluations", "consistency, 4 evaluations", "midpoint, 21 evaluations")


def paint_set(folder: Path) -> None:
    """The set, as `morphline check` takes it. The folder must not be there yet."""
    folder.mkdir(parents=True)
    rows = []
    for number, scene in enumerate(tqdm(scenes_from(LEARNED_FROM, LEARNED), desc="paint", unit="picture")):
        name = f"p{number:05d}.png"
        Image.fromarray(paint(scene, 128, 128)).save(folder / name)
        rows.append(json.dumps({"file_name": name, "text": caption(scene)}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")


def with_adapter(file: Path | None, weight: float = 1.0, source: str = "models/pocket") -> Base:
    """The pocket, with an adapter under it or none."""
    if file is None:
        return open_pocket(source)
    adapter = BaseAdapter(file=str(file), digest=f"sha256:{file_sha256(file)}", weight=weight)
    section = BaseSection(source=source, revision=None, config=None, dtype="float32", clip_skip=0, adapters=(adapter,))
    return open_adapted_base(section.model_copy(update={"revision": base_digest(section)}), choose_device("auto"))


def painted(base: Base, scenes: Sequence[Scene], way: Way, label: str) -> torch.Tensor:
    """What a base makes of the scenes' captions, (N, 3, 128, 128) in [0, 1]; the same noise for every way."""
    made = []
    for first in tqdm(range(0, len(scenes), TOGETHER), desc=label, unit="batch"):
        some = scenes[first : first + TOGETHER]
        noise = torch.randn(len(some), base.latent_channels, 16, 16, generator=torch.Generator().manual_seed(first))
        latents = sample_captions(
            base,
            noise,
            base.condition([caption(scene) for scene in some]),
            steps=way.steps,
            guidance=way.guidance,
            solver=way.solver,
            fresh=way.fresh,
            seeds=range(first, first + len(some)),
        )
        made.append(base.decode(latents))
    return torch.cat(made)


def measure_consistency(file: Path, weight: float, count: int, out: Path) -> None:
    """A table of distances to unseen paintings, and the sheet `few-steps.webp`."""
    taught, unseen = scenes_from(READ, TO_READ), paintings(scenes_from(SECOND, count)).float() / 255
    reader = train_reader(paintings(taught), taught)
    theirs, described = features(reader, unseen), scenes_from(FIRST, count)
    bases = {True: with_adapter(file, weight), False: with_adapter(None)}
    print("| | Frechet distance |\n|---|---|")
    others = features(reader, paintings(described).float() / 255)
    print(f"| other paintings | {frechet_distance(others, theirs):.3f} |", flush=True)
    for name, way in WAYS.items():
        made = features(reader, painted(bases[way.distilled], described, way, name))
        print(f"| {name} | {frechet_distance(made, theirs):.3f} |", flush=True)
    shown = scenes_from(MEASURED + 5000, SHOWN)
    columns = [to_arrays(painted(bases[WAYS[name].distilled], shown, WAYS[name], "sheet")) for name in SHEET]
    rows = [list(row) for row in zip(*columns, strict=True)]
    labels = [name.replace(" evaluations", "").replace(",", "") for name in SHEET]
    grid(rows, [caption(scene) for scene in shown], labels).save(out / "few-steps.webp", quality=90)


def measure_smoothness(file: Path, pairs: int, frames: int, out: Path) -> None:
    """Ways between captions, and morphs, by the base without the adapter and with it."""
    bases = {"the base": with_adapter(None), "the base with smooth": with_adapter(file)}
    ways = list(zip(scenes_from(MEASURED, PAIRS), scenes_from(FIRST, PAIRS), strict=True))
    for name, base in bases.items():
        found = jumps(base, ways, POINTS)
        over = int((found > 3).sum())
        print(
            f"{name}: between captions, {PAIRS} pairs at {POINTS} points: largest over mean step "
            f"{float(found.mean()):.2f} on average, {float(found.max()):.2f} at most, above 3 in {over}"
        )
    chosen, settings = pair_scenes(pairs), load_params().train
    pictures = paintings(chosen).float() / 255
    row, means, shown = ROWS["pacing, 6 spare (as it ships)"], {}, dict[str, list[list[np.ndarray]]]()
    even = ROWS["adapters by position"]
    for name, base in bases.items():
        keyframes = trained_keyframes(base, chosen, settings)
        for label, chosen_row in ((f"{name}, even alphas", even), (f"{name}, paced", row)):
            found, strips = [], []
            for number in tqdm(range(pairs), desc=label, unit="morph"):
                two = slice(2 * number, 2 * number + 2)
                pair = Pair({"as shipped": (keyframes[2 * number], keyframes[2 * number + 1])}, pictures[two])
                made, alphas, evaluations = morphed(base, pair, chosen_row, frames)
                # Judged by one base alone, whoever made them.
                found.append([*figures(bases["the base"], pair, chosen_row, made, alphas), evaluations])
                strips.append(to_arrays(made))
            means[label], shown[label] = np.array(found), strips
    print(table(means))
    for number in range(min(pairs, 3)):
        rows = [(label, strips[number]) for label, strips in shown.items()]
        strip(rows, keyframes=[0, frames - 1], columns=9, cell=96).save(out / f"smooth-{number + 1}.webp", quality=88)


def main() -> None:
    """Measure what is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paint", type=Path, metavar="FOLDER")
    parser.add_argument("--consistency", type=Path)
    parser.add_argument("--weight", type=float, default=1.0, help="of the adapter for consistency")
    parser.add_argument("--smooth", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="pictures a distance is taken over")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("docs/objectives"))
    arguments = parser.parse_args()
    if arguments.paint:
        paint_set(arguments.paint)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.consistency:
        measure_consistency(arguments.consistency, arguments.weight, arguments.count, arguments.out)
    if arguments.smooth:
        measure_smoothness(arguments.smooth, arguments.pairs, arguments.frames, arguments.out)


if __name__ == "__main__":
    main()
