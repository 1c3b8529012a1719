"""Stage `train@<set>`: LoRA adapters of a prepared set, one for each picture or one for all."""

import csv
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from datasets import disable_progress_bars, load_dataset
from PIL import Image
from tqdm import tqdm

from pipeline.adapters.lora import keyed_seed, lora_config, save_adapter
from pipeline.adapters.store import write_index
from pipeline.base.device import choose_device
from pipeline.base.opening import open_base
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.frames.tensors import Frame, to_arrays
from pipeline.outputs import atomic_file, atomic_folder, require_output
from pipeline.params import BaseSection, MachineSection, Params, TrainSection, load_params
from pipeline.pictures.metadata import read_rows
from pipeline.sampling.solver import sample
from pipeline.tracking import Tracker, track
from pipeline.training.checkpoints import Checkpoints, TrainState, held
from pipeline.training.code_digest import stamp
from pipeline.training.draws import Sample
from pipeline.training.encoding import encode_sample
from pipeline.training.finished import Finished
from pipeline.training.loop import Curves, Job, Watch, curves_of, hardly_moved, train_adapters
from pipeline.training.pack import AdapterPack
from pipeline.training.processes import ALONE, Processes, is_launched, joined, launch, wanted
from pipeline.training.rates import learning_rate

WORK = Path(".work/adapters")
LATENTS = Path(".work/latents")
PREVIEWED, PREVIEW_STEPS = 4, 20
# Names in MLflow, whose charts come in the order of the alphabet: the loss first.
CURVES = {"loss": "loss/{}", "grad_norm": "optimizer/grad_norm/{}", "learning_rate": "optimizer/learning_rate/{}"}


def run(key: str) -> None:
    """Write models/adapters/<set>/ and reports/curves/sets/<set>.csv, with as many processes as there are to use."""
    params = load_params()
    device = choose_device(params.machine.device)
    count = wanted(params.machine.processes, device)
    if count > 1 and not is_launched():
        if code := launch(["train", key], count, device):
            raise SystemExit(code)
        return
    processes, device = joined(device)
    train_set(key, params, processes, device)


def train_set(key: str, params: Params, processes: Processes, device: torch.device) -> None:
    """What each process does. Adapters of single pictures are shared out; one for all is trained by all together."""
    spec = params.get_set(key)
    prepared, out = require_output(Path("data/prepared", key), f"prepare@{key}"), Path("models/adapters", key)
    section = {"base": params.base.model_dump(), "train": spec.train.model_dump(), "adapter": spec.adapter}
    tracked: AbstractContextManager[Tracker | None] = nullcontext()
    if processes.main:
        tracked = track(f"train@{key}", params.tracking, section, datasets={key: prepared}, tags=params.base.tags())
    with tracked as tracker, ExitStack() as locks:
        base = open_base(params.base, device)
        samples = encode_set(base, prepared, spec.train.flip)
        empty = base.condition([""])
        base.release_encoders()
        groups = (
            {Path(sample.name).stem: [sample] for sample in samples} if spec.adapter == "image" else {"set": samples}
        )
        jobs = [Job(name, identity(base, group, section), group) for name, group in groups.items()]
        finished = Finished(WORK)
        known = {job.name for job in jobs if params.machine.reuse and finished.has(job.identity)}
        processes.wait()  # until all have looked, and before any has made one
        if known and processes.main:
            tqdm.write(f"{len(known)} of {len(jobs)} adapters are known: same picture, caption, params and base")
        unknown = [job for job in jobs if job.name not in known]
        together = processes if spec.adapter == "set" else ALONE
        mine = unknown if together.count > 1 else processes.shared_out(unknown)
        if together.main:
            for job in mine:
                locks.enter_context(held(WORK / job.identity))
        every = params.tracking.pictures_every
        states = train_unknown(base, mine, spec.train, params.machine, empty, tracker, every, together)
        # Kept only when all are trained: after a kill in between, the same adapters are unknown as before, and so are
        # shared out and packed as before.
        processes.wait()
        if together.main:
            keep_all(base, mine, states, params.base, spec.train, finished)
        processes.wait()
        if tracker is None:
            return
        with atomic_folder(out) as folder:
            for job in jobs:
                shutil.copyfile(finished.adapter(job.identity), folder / f"{job.name}.safetensors")
            write_index(folder, {s.name: f"{job.name}.safetensors" for job in jobs for s in job.samples})
        curves = {job.name: curves_of(finished.state(job.identity), spec.train) for job in jobs}
        write_curves(Path("reports/curves/sets", f"{key}.csv"), curves, spec.train)
        others = {job.name: curves[job.name] for job in unknown if job.name not in states}
        log_curves(tracker, others, spec.train)
        tracker.metrics({"final_loss": fmean(last_loss(curve) for curve in curves.values())})
        height, width = (side * base.pixels_per_latent for side in samples[0].posterior.mean.shape[-2:])
        for name in groups:
            tracker.adapter(
                out / f"{name}.safetensors",
                params.base.source,
                params.base.revision,
                f"{key}-{name}",
                size=(width, height),
            )


def encode_set(base: StableDiffusion, folder: Path, flip: bool) -> list[Sample]:
    """Every picture of a prepared imagefolder, encoded once; read with `datasets`, as anyone else could read it."""
    disable_progress_bars()
    samples = []
    # A cache of its own, for this once: `datasets` takes a changed picture with the same time stamp for the old one.
    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=cache)
        for listed, row in zip(read_rows(folder), tqdm(rows, desc="encode", unit="picture"), strict=True):
            assert row["text"] == listed.text, f"{folder}: `datasets` reads rows in another order than metadata.jsonl"
            pixels = torch.from_numpy(np.array(row["image"].convert("RGB"))).permute(2, 0, 1)
            samples.append(encode_sample(base, listed.file_name, pixels, listed.text, flip, LATENTS))
    return samples


def identity(base: StableDiffusion, samples: Sequence[Sample], section: Mapping[str, Any]) -> str:
    """Of everything that an adapter depends on: only if all is the same, work goes on or is reused."""
    inputs = [f"{sample.name} {sample.digest}" for sample in samples]
    parts = [stamp(), base.digest, json.dumps(section, sort_keys=True), *inputs]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def train_unknown(
    base: StableDiffusion,
    jobs: Sequence[Job],
    settings: TrainSection,
    machine: MachineSection,
    empty: torch.Tensor,
    tracker: Tracker | None,
    pictures_every: int | None,
    processes: Processes,
) -> dict[str, TrainState]:
    """Train the jobs, side by side; their last states by name. processes: those that train each of them together."""
    if settings.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    states = train_adapters(
        base,
        jobs,
        settings,
        Checkpoints(WORK),
        empty=empty,
        pack_size=machine.pack,
        every=machine.checkpoint_every,
        watch=watching(base, tracker, pictures_every) if tracker else Watch(),
        processes=processes,
    )
    base.unet.disable_gradient_checkpointing()
    return states


def keep_all(
    base: StableDiffusion,
    jobs: Sequence[Job],
    states: Mapping[str, TrainState],
    base_section: BaseSection,
    settings: TrainSection,
    finished: Finished,
) -> None:
    """Keep the adapters of finished trainings, whose checkpoints go; a word on those that learned hardly anything."""
    checkpoints = Checkpoints(WORK)
    for job in jobs:
        curves = curves_of(states[job.name], settings)
        if warning := hardly_moved(curves):
            tqdm.write(f"{job.name}: {warning}")
        keep(base, job, states[job.name], base_section, settings, finished)
        checkpoints.forget(job.identity)


def watching(base: StableDiffusion, tracker: Tracker, pictures_every: int | None) -> Watch:
    """Every step of every adapter, each picture's loss at fixed noise, and pictures on the way, to MLflow."""

    def steps(name: str, step: int, values: Mapping[str, float]) -> None:
        tracker.metrics({CURVES[measure].format(name): value for measure, value in values.items()}, step)

    def validated(job: Job, step: int, losses: Mapping[str, float]) -> None:
        tracker.metrics({f"validation/{job.name}": fmean(losses.values())}, step)
        if len(losses) > 1:
            tracker.metrics({f"validation/{job.name}/{name}": loss for name, loss in losses.items()}, step)

    def preview(jobs: Sequence[Job], step: int) -> None:
        tracker.picture("training", Image.fromarray(preview_sheet(base, jobs)), step)

    return Watch(steps, validated, preview, pictures_every)


@torch.no_grad()
def preview_sheet(base: StableDiffusion, jobs: Sequence[Job]) -> Frame:
    """What the adapters in training make of their captions from fixed noise: a row for each, four captions at most."""
    shown = [sample for job in jobs for sample in job.samples[:PREVIEWED]]
    noise = torch.cat(
        [
            torch.randn(
                s.posterior.mean.shape, generator=torch.Generator().manual_seed(keyed_seed("preview", s.digest))
            )
            for s in shown
        ]
    ).to(base.device)
    conditioning = torch.cat([s.conditioning for s in shown])

    def predict(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        return base.predict(latents, torch.full((len(latents),), timestep, device=latents.device), conditioning)

    base.vae.to(base.device)  # for the while: training needs the room
    pictures = to_arrays(base.decode(sample(noise, predict, base.schedule, PREVIEW_STEPS, iter)))
    base.vae.to("cpu")
    across = len(shown) // len(jobs)
    rows = [np.concatenate(pictures[first : first + across], axis=1) for first in range(0, len(shown), across)]
    return np.concatenate(rows)


def keep(
    base: StableDiffusion,
    job: Job,
    state: TrainState,
    base_section: BaseSection,
    settings: TrainSection,
    finished: Finished,
) -> None:
    """Put a finished adapter and what it saw beside its name, for this set and for any that needs it again."""
    pack = AdapterPack(base.unet, [0], settings)
    pack.down[0], pack.up[0] = state.tensors["weight/down"], state.tensors["weight/up"]
    notes = {
        "base": {"source": base_section.source, "revision": base_section.revision, "digest": base.digest},
        "captions": {sample.name: sample.caption for sample in job.samples},
        "inputs": {sample.name: sample.digest for sample in job.samples},
        "rank": settings.rank,
        "alpha": settings.alpha,
        "steps": state.step,
        "train": settings.model_dump(mode="json"),
    }
    with finished.writing(job.identity, state) as path:
        save_adapter(path, pack.tensors(0), lora_config(settings), notes)


def log_curves(tracker: Tracker, curves: Mapping[str, Curves], settings: TrainSection) -> None:
    """The curves of adapters that other processes trained, as `watching` logs those of this one."""
    for name, curve in curves.items():
        for step, (loss, norm) in enumerate(zip(curve.loss.tolist(), curve.grad_norm.tolist(), strict=True)):
            values = {"loss": loss, "grad_norm": norm, "learning_rate": learning_rate(settings, step)}
            tracker.metrics({CURVES[measure].format(name): value for measure, value in values.items()}, step)
        for step, losses in curve.validation.items():
            tracker.metric(f"validation/{name}", float(losses.mean()), step)


def last_loss(curve: Curves) -> float:
    """A step's loss is mostly its timesteps': a mean over the last tenth says where the training ended."""
    return float(curve.loss[-max(1, len(curve.loss) // 10) :].mean())


def write_curves(path: Path, curves: Mapping[str, Curves], settings: TrainSection) -> None:
    """One line a step: means over the adapters still in training, then each one's loss, and its loss at fixed noise."""
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = list(curves)
        validated = [f"validation loss {name}" for name in names]
        writer.writerow(["step", "learning_rate", "loss", "grad_norm", *(f"loss {name}" for name in names), *validated])
        for step in range(max(len(curve.loss) for curve in curves.values())):
            losses = [float(curve.loss[step]) if step < len(curve.loss) else None for curve in curves.values()]
            norms = [float(curve.grad_norm[step]) for curve in curves.values() if step < len(curve.loss)]
            present = [loss for loss in losses if loss is not None]
            # A validation after step n belongs to line n - 1, the one before the first to line 0.
            checked = [
                next((float(v.mean()) for at, v in curve.validation.items() if max(at - 1, 0) == step), None)
                for curve in curves.values()
            ]
            figures = [learning_rate(settings, step), fmean(present), fmean(norms), *losses, *checked]
            writer.writerow([step, *("" if figure is None else f"{figure:.6g}" for figure in figures)])
