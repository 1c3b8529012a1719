"""The whole pipeline on full-size bases with random weights: `python -m tests.benchmarks.shapes sd15`.

Makes the base as a diffusers folder (`--single-file`: as one .safetensors file) and a project with one pair of pictures
at the base's own size, and runs every stage as a user would, with few steps; prints time and peak memory of each.
`--compare` makes a picture from a caption with diffusers' own pipeline and with ours, of the same weights and noise,
and says how far apart they are. Needs no network; the disk and the memory of the base: 4 GB for Stable Diffusion 1.5 in
float32, 14 GB for XL.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from pipeline.base.checking import base_digest
from pipeline.base.device import choose_device
from pipeline.base.noise_path import VariancePreserving
from pipeline.landscapes.painter import paint
from pipeline.landscapes.world import caption
from pipeline.sampling.captions import sample_captions
from pipeline.sections import BaseSection
from tests.benchmarks.full_size import SHAPES, Shape, base_of, build, pipeline_of
from tests.benchmarks.shared import scenes_from
from tests.project import ROOT, SHIPPED, with_entries, with_values, write_rows
from tests.single_files import write_single_file

SETS = "  pair: {adapter: image, prepare: {}, train: {}, sample: {captions: 1, seeds: 1, weights: [1.0]}}\n"
MORPHS = "  pair: {set: pair, style: none, keyframes: [a.png, b.png], morph: {}}\n"
BETWEEN = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
sys.exit(code)
"""
"""A process inherits the peak of the one that starts it. This one is small."""
STAGES = (["check"], ["prepare", "pair"], ["train", "pair"], ["sample", "pair"], ["frames", "pair"],
          ["evaluate", "pair"], ["report"])  # fmt: skip


@dataclass(frozen=True)
class Usage:
    """seconds: of a processor, of all the stage's processes. peak: bytes, of the largest of them. on_card: bytes of the
    GPU's memory, all that it had beyond what was taken before; 0 without one."""

    seconds: float
    peak: float
    on_card: int


def write_base(shape: Shape, work: Path, as_file: bool) -> tuple[Path, Path | None]:
    """The base with random weights, as a diffusers folder; or as one file, and a folder of its configs alone."""
    torch.manual_seed(0)
    pipe, folder = pipeline_of(build(shape)), work / "base"
    pipe.save_pretrained(folder)
    if not as_file:
        return folder, None
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return write_single_file(pipe, work / "base.safetensors"), folder


def make_project(folder: Path, base: Path, config: Path | None, shape: Shape, options: argparse.Namespace) -> None:
    """A project of two paintings at the size of the base, with few steps. config: that of a single file."""
    dtype, steps = options.dtype, options.steps
    raw = folder / "data/raw/pair"
    raw.mkdir(parents=True)
    chosen = scenes_from(1, 2)
    for name, scene in zip(("a.png", "b.png"), chosen, strict=True):
        Image.fromarray(paint(scene, shape.side, shape.side)).save(raw / name)
    names = zip(("a.png", "b.png"), chosen, strict=True)
    write_rows(raw, [{"file_name": name, "text": caption(scene)} for name, scene in names])
    configs = str(config) if config else None
    section = BaseSection(source=str(base), revision=None, config=configs, dtype=dtype, clip_skip=0, adapters=())
    values = {
        "base.source": str(base),
        "base.revision": base_digest(section),
        "base.config": configs or "null",
        "base.dtype": dtype,
        "prepare.width": shape.side,
        "prepare.height": shape.side,
        "train.steps": options.trained,
        "train.batch": 1,
        "sample.steps": steps,
        "morph.frames": options.frames,
        "morph.steps": steps,
        "morph.inversion_steps": steps,
        "morph.pacing_spare": 1,
        "morph.without_adapters": "false",
        "machine.batch": 3,
        "machine.workers": 1,
    }
    text = with_entries(with_entries(with_entries(SHIPPED, "sets", SETS), "morphs", MORPHS), "edits", "")
    (folder / "params.yaml").write_text(with_values(text, values), encoding="utf-8")


def run_stage(arguments: Sequence[str], folder: Path) -> tuple[float, Usage]:
    """Seconds and usage of a stage in a process of its own. Raises CalledProcessError when it fails."""
    start = time.perf_counter()
    usage = stage_usage(arguments, folder)
    return time.perf_counter() - start, usage


@contextmanager
def card_watched() -> Iterator[list[int]]:
    """While it lasts, what the first entry is at its end: the most bytes of the GPU that were taken."""
    most, done = [0], threading.Event()
    if not torch.cuda.is_available():
        yield most
        return
    before = torch.cuda.mem_get_info()[0]

    def watch() -> None:
        while not done.wait(0.05):
            most[0] = max(most[0], before - torch.cuda.mem_get_info()[0])

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield most
    finally:
        done.set()
        watching.join()


def stage_usage(arguments: Sequence[str], folder: Path) -> Usage:
    """What a stage in a process of its own has used. Raises CalledProcessError when it fails."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-m", "pipeline", *arguments]
    with (folder / "log.txt").open("ab") as log, card_watched() as on_card:
        between = [sys.executable, "-c", BETWEEN, *command]
        done = subprocess.run(between, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log)
    if done.returncode:
        said = (folder / "log.txt").read_text(encoding="utf-8")[-2000:]
        raise subprocess.CalledProcessError(done.returncode, command, said)
    seconds, peak = map(float, done.stdout.split())
    return Usage(seconds, peak, on_card[0])


@torch.no_grad()
def compare(shape: Shape, steps: int) -> tuple[float, float]:
    """Largest difference between diffusers' latents of a caption and ours, and the largest latent; float32, guided."""
    device = choose_device("auto")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    with device:
        parts = build(shape)
    pipe = pipeline_of(parts).to(device)
    pipe.set_progress_bar_config(disable=True)
    base = base_of(shape, parts, VariancePreserving.from_scheduler_config(parts.scheduler.config), str(device))
    noise = torch.randn(1, *shape.latents).to(device)
    theirs = pipe(
        "a lake", latents=noise.clone(), num_inference_steps=steps, guidance_scale=3.0, output_type="latent",
        height=shape.side, width=shape.side,
    ).images  # fmt: skip
    ours = sample_captions(base, noise, base.condition(["a lake"]), steps=steps, guidance=3.0, solver="ddim")
    return float((theirs - ours).abs().max()), float(ours.abs().max())


def main() -> None:
    """Make, run, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--trained", type=int, default=1)
    names = [stage[0] for stage in STAGES]
    left_out = "stages that are not run; `report` needs `evaluate`"
    parser.add_argument("--without", nargs="+", default=[], choices=names, help=left_out)
    parser.add_argument("--single-file", action="store_true", help="the base as one .safetensors file, not as a folder")
    parser.add_argument("--compare", action="store_true", help="with diffusers, instead of running the stages")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder, which is removed")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    if arguments.compare:
        apart, largest = compare(shape, arguments.steps)
        print(f"{shape.name}, {arguments.steps} steps: {apart:.2e} apart, the largest latent is {largest:.2f}")
        return
    work = arguments.folder or Path(tempfile.mkdtemp())
    try:
        base, config = write_base(shape, work, arguments.single_file)
        make_project(work / "project", base, config, shape, arguments)
        form = "one file" if config else "a folder"
        print(f"{shape.name}, {shape.side}x{shape.side}, {form}, {arguments.dtype}, {os.cpu_count()} cores")
        print("| stage | seconds | peak GB | on the card |\n|---|---|---|---|")
        for stage in (stage for stage in STAGES if stage[0] not in arguments.without):
            seconds, usage = run_stage(stage, work / "project")
            cells = f"{seconds:.0f} | {usage.peak / 1e9:.1f} | {usage.on_card / 1e9:.1f}"
            print(f"| {stage[0]} | {cells} |", flush=True)
    finally:
        if arguments.folder is None:
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
