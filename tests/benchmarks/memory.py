"""Peak memory by frames and steps: `python -m tests.benchmarks.memory [--frames 16 64 256] [--steps 25 50 100]`.

Each number comes from a process of its own that makes one segment, `--batch` samples at once, and decodes its frames
one by one. Peak: of the process on a CPU, of torch's own memory on a GPU. Nothing of a morph is kept between steps, so
that neither steps nor frames should matter, but for the latents of the frames themselves.

`--films 50 1000`: instead, the stages that make and evaluate films of so many frames of 256x256 pixels, in two steps. A
film's frames go to disk one by one, so that their number should not matter.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from pipeline.film import draw_latents
from pipeline.landscapes.world import caption
from pipeline.morphing.diffmorpher import KeyframeAttention
from pipeline.morphing.engine import (
    EncodedKeyframe,
    Recipe,
    invert_keyframes,
)
from tests.benchmarks.pairs import scenes
from tests.benchmarks.shapes import run_stage
from tests.benchmarks.shared import open_pocket, paced_segment, paintings
from tests.project import make_project

FILM = {
    "prepare.width": 256,
    "prepare.height": 256,
    "train.steps": 1,
    "morph.steps": 2,
    "morph.inversion_steps": 2,
    "morph.pacing": "linear",
    "morph.correct_ends": 0,
    "machine.batch": 8,
}


def one_morph(source: str, frames: int, steps: int, batch: int) -> float:
    """Make one morph with all options that could store something; its peak memory in MiB."""
    base = open_pocket(source)
    chosen = scenes(1)
    latents = draw_latents(base, paintings(chosen).float() / 255)
    conditioning = base.condition([caption(scene) for scene in chosen])
    ends = tuple(EncodedKeyframe(latents[i], conditioning.take([i])) for i in range(2))
    recipe = Recipe(steps, steps, use_adain=True, attention=KeyframeAttention(("down", "mid", "up"), 1.0, "inputs"))

    noise = invert_keyframes(base, ends, recipe, batch)
    for latent in paced_segment(base, ends, noise, frames, 6, recipe, batch)[1]:
        base.decode(latent[None])
    if base.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def film(source: str, frames: int) -> tuple[float, float]:
    """Make and evaluate a film of three keyframes; peak memory in MiB of either stage."""
    with tempfile.TemporaryDirectory() as folder:
        values = FILM | {"morph.frames": frames // 2}
        project = make_project(Path(folder, "project"), Path(source).resolve(), "", values)
        for stage in (["prepare", "hills"], ["train", "hills"]):
            run_stage(stage, project)
        peaks = [run_stage([stage, "hills"], project)[1].peak for stage in ("frames", "evaluate")]
        return peaks[0] / 2**20, peaks[1] / 2**20


def main() -> None:
    """Measure each in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="models/pocket")
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 50, 100])
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--films", type=int, nargs="+", default=[])
    parser.add_argument("--one", action="store_true", help="the first of frames and steps, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(one_morph(arguments.base, arguments.frames[0], arguments.steps[0], arguments.batch))
        return
    if arguments.films:
        print("| peak MiB | making the frames, both variants | evaluating them |\n|---|---|---|")
        for frames in arguments.films:
            print(
                f"| {frames} frames | {' | '.join(f'{peak:.0f}' for peak in film(arguments.base, frames))} |",
                flush=True,
            )
        return
    print(
        f"| peak MiB, {arguments.batch} samples at once | {' | '.join(f'{steps} steps' for steps in arguments.steps)} |"
    )
    print("|---" * (len(arguments.steps) + 1) + "|")
    for frames in arguments.frames:
        cells = []
        for steps in arguments.steps:
            command = [sys.executable, "-m", "tests.benchmarks.memory", "--one", "--base", arguments.base]
            command += ["--frames", str(frames), "--steps", str(steps), "--batch", str(arguments.batch)]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            cells.append(f"{float(said.stdout.split()[-1]):.0f}")
        print(f"| {frames} frames | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
