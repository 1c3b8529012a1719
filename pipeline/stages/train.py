"""Stage `train@<set>`: LoRA adapters of a prepared set, one for each picture or one for all."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from pipeline.adapters.store import write_index
from pipeline.base.device import choose_device
from pipeline.base.opening import open_base
from pipeline.base.protocol import Base
from pipeline.frames.prepared import read_prepared_pixels
from pipeline.outputs import atomic_folder, require_output
from pipeline.params import Params, load_params
from pipeline.previews import preview_sheet
from pipeline.tracking import Tracker, track
from pipeline.training.checkpoints import Checkpoints, training_lock
from pipeline.training.code_digest import code_digest
from pipeline.training.denoising import Denoising
from pipeline.training.examples import Example, encode_example
from pipeline.training.finished import FinishedAdapters
from pipeline.training.history import curves_of, learned_little, write_curves
from pipeline.training.loop import Callbacks, Job, Run, train_adapters
from pipeline.training.processes import is_launched, join_processes, process_count, relaunch

WORK = Path(".work/adapters")
LATENTS = Path(".work/latents")


def run(key: str) -> None:
    """Write models/adapters/<set>/ and reports/curves/sets/<set>.csv, with as many processes as there are to use."""
    params = load_params()
    device = choose_device(params.machine.device)
    count = process_count(params.machine.processes, device)
    if count > 1 and not is_launched():
        relaunch(["train", key], count, device)
    train_set(key, params, join_processes(device))


def train_set(key: str, params: Params, accelerator: Accelerator) -> None:
    """What each process does. Adapters of single pictures are shared out; one for all is trained by all together."""
    spec = params.get_set(key)
    prepared, out = require_output(Path("data/prepared", key), f"prepare@{key}"), Path("models/adapters", key)
    section = {"base": params.base.model_dump(), "train": spec.train.model_dump(), "adapter": spec.adapter}
    tracked: AbstractContextManager[Tracker | None] = nullcontext()
    if accelerator.is_main_process:
        tracked = track(f"train@{key}", params.tracking, section, datasets={key: prepared}, tags=params.base.tags())
    with tracked as tracker, ExitStack() as locks:
        base = open_base(params.base, accelerator.device)
        examples = [
            encode_example(base, row.file_name, pixels, row.text, spec.train.flip, LATENTS)
            for row, pixels in tqdm(read_prepared_pixels(prepared), desc="encode", unit="picture")
        ]
        empty = base.condition([""])
        base.move_encoders(torch.device("cpu"))
        jobs = jobs_of(base, examples, spec.adapter == "image", section)

        finished, checkpoints = FinishedAdapters(WORK), Checkpoints(WORK)
        known = {job.name for job in jobs if params.machine.reuse and finished.has(job.identity)}
        accelerator.wait_for_everyone()  # until all have looked, and before any has written one
        if known and accelerator.is_main_process:
            tqdm.write(f"{len(known)} of {len(jobs)} adapters are reused: same picture, caption, params and base")
        unknown = [job for job in jobs if job.name not in known]
        together = accelerator if spec.adapter == "set" and accelerator.num_processes > 1 else None
        with accelerator.split_between_processes(unknown) as share:
            mine = unknown if together else share
        writes = together is None or accelerator.is_main_process
        if writes:
            for job in mine:
                locks.enter_context(training_lock(WORK / job.identity))

        if spec.train.gradient_checkpointing:
            base.denoiser.enable_gradient_checkpointing()
        training = Run(
            base,
            spec.train,
            empty,
            checkpoints,
            objective=Denoising(spec.train.min_snr_gamma),
            pack_size=params.machine.pack,
            checkpoint_every=params.machine.checkpoint_every,
            callbacks=callbacks(base, tracker, params.tracking.pictures_every) if tracker else Callbacks(),
            accelerator=together,
        )
        states = train_adapters(training, mine)
        # Kept only when all are trained: after a kill in between, the same adapters are unknown as before, and so are
        # shared out and packed as before.
        accelerator.wait_for_everyone()
        for job in mine if writes else ():
            if warning := learned_little(curves_of(states[job.name], spec.train)):
                tqdm.write(f"{job.name}: {warning}")
            source = {"source": params.base.source, "revision": params.base.revision}
            finished.add(base, job, states[job.name], source, spec.train)
            checkpoints.forget(job.identity)
        accelerator.wait_for_everyone()
        if tracker is None:
            return

        with atomic_folder(out) as folder:
            for job in jobs:
                shutil.copyfile(finished.adapter(job.identity), folder / f"{job.name}.safetensors")
            write_index(folder, {e.name: f"{job.name}.safetensors" for job in jobs for e in job.examples})
        curves = {job.name: curves_of(finished.state(job.identity), spec.train) for job in jobs}
        write_curves(Path("reports/curves/sets", f"{key}.csv"), curves, spec.train)
        tracker.metrics({"final_loss": fmean(curve.final_loss for curve in curves.values())})
        height, width = (side * base.pixels_per_latent for side in examples[0].posterior.mean.shape[-2:])
        for job in jobs:
            tracker.adapter(
                out / f"{job.name}.safetensors",
                params.base.source,
                params.base.revision,
                f"{key}-{job.name}",
                size=(width, height),
            )


def jobs_of(base: Base, examples: Sequence[Example], one_each: bool, section: Mapping[str, Any]) -> list[Job]:
    """A job for each picture, named as it is, or one for the whole set."""
    groups = {Path(e.name).stem: [e] for e in examples} if one_each else {"set": list(examples)}
    return [Job(name, identity(base, group, section), group) for name, group in groups.items()]


def identity(base: Base, examples: Sequence[Example], section: Mapping[str, Any]) -> str:
    """A digest of everything that an adapter depends on: only if all is the same, it is continued or reused."""
    inputs = [f"{example.name} {example.digest}" for example in examples]
    parts = [code_digest(), base.digest, json.dumps(section, sort_keys=True), *inputs]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def callbacks(base: Base, tracker: Tracker, pictures_every: int | None) -> Callbacks:
    """Every step of every adapter, each picture's loss at fixed noise, and pictures on the way, to MLflow."""

    def step(name: str, step: int, values: Mapping[str, float]) -> None:
        tracker.metrics({f"{measure}/{name}": value for measure, value in values.items()}, step)

    def validation(job: Job, step: int, losses: Mapping[str, float]) -> None:
        tracker.metrics({f"validation/{job.name}": fmean(losses.values())}, step)
        if len(losses) > 1:
            tracker.metrics({f"validation/{job.name}/{name}": loss for name, loss in losses.items()}, step)

    def preview(jobs: Sequence[Job], step: int) -> None:
        tracker.picture("training", Image.fromarray(preview_sheet(base, jobs)), step)

    return Callbacks(step, validation, preview, pictures_every)
