"""Stage `train@<set>`: LoRA adapters of a prepared set, one for each picture or one for all."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from pipeline.adapted_base import open_adapted_base
from pipeline.adapters.store import write_index
from pipeline.base.device import choose_device
from pipeline.base.posterior import keyed_seed
from pipeline.base.protocol import Base
from pipeline.frames.prepared import read_prepared_pixels
from pipeline.outputs import atomic_folder, require_output
from pipeline.params import Params, SetSpec, load_params
from pipeline.previews import preview_sheet
from pipeline.processes.joining import all_processes
from pipeline.processes.memory import free_cached_memory, ran_out_of_memory
from pipeline.sections import TrainSection
from pipeline.tracking import Tracker, track
from pipeline.training.cache import AdapterCache
from pipeline.training.checkpoints import Checkpoints, training_locks
from pipeline.training.code_digest import TRAINING, code_digest
from pipeline.training.examples import Example, encode_example, forget_oldest
from pipeline.training.history import curves_of, learned_little, write_curves
from pipeline.training.loop import Callbacks, Job, TrainingSetup, train_adapters
from pipeline.training.objectives import objective_of
from pipeline.training.rates import learning_rate
from pipeline.training.recording import recompute_in_backward

WORK = Path(".work/adapters")
LATENTS = Path(".work/latents")
LATENTS_LIMIT = 8 * 2**30
"""Bytes of encoded pictures that are kept, of this set and others: some 7,000 of 1024x1024 for an SDXL."""
# Names in MLflow, whose charts come in the order of the alphabet: the loss first.
METRICS = {"loss": "loss/{}", "grad_norm": "optimizer/grad_norm/{}", "learning_rate": "optimizer/learning_rate/{}"}


def run(key: str) -> None:
    """Write models/adapters/<set>/ and reports/curves/sets/<set>.csv, with as many processes as there are to use."""
    params = load_params()
    device = choose_device(params.machine.device)
    train_set(key, params, all_processes(["train", key], params.machine.processes, device))


def train_set(key: str, params: Params, accelerator: Accelerator) -> None:
    """What each process does. The first tracks the run and writes the outputs."""
    spec = params.get_set(key)
    prepared = require_output(Path("data/prepared", key), f"prepare@{key}")
    section = {"base": params.base.model_dump(), "train": spec.train.model_dump(), "adapter": spec.adapter}
    tracked: AbstractContextManager[Tracker | None] = nullcontext()
    if accelerator.is_main_process:
        tracked = track(f"train@{key}", params.tracking, section, datasets={key: prepared}, tags=params.base.tags())
    with tracked as tracker:
        base, start = open_adapted_base(params.base, accelerator.device), time.time()
        examples = encoded_examples(base, prepared, spec.train.flip, accelerator)
        if accelerator.is_main_process:
            forget_oldest(LATENTS, LATENTS_LIMIT, start)
        jobs = jobs_of(base, examples, spec.adapter == "image", section, spec.train.hold_out)
        elsewhere = train_missing(base, jobs, params, spec, accelerator, tracker)
        if tracker:
            height, width = (side * base.pixels_per_latent for side in examples[0].posterior.mean.shape[-2:])
            write_outputs(key, jobs, spec, params, tracker, (width, height))
            log_curves(tracker, elsewhere, spec.train)


def encoded_examples(base: Base, prepared: Path, flip: bool, accelerator: Accelerator) -> list[Example]:
    """A prepared set's pictures and captions, encoded; of several processes each does a share, and finds the rest."""

    def encoded(index: int, of: int) -> list[Example]:
        listed = tqdm(read_prepared_pixels(prepared), desc="encode", unit="picture")
        return [
            encode_example(base, row.file_name, pixels, row.text, flip, LATENTS)
            for number, (row, pixels) in enumerate(listed)
            if number % of == index
        ]

    if accelerator.num_processes > 1:
        encoded(accelerator.process_index, accelerator.num_processes)
        accelerator.wait_for_everyone()
    return encoded(0, 1)


def train_missing(
    base: Base, jobs: Sequence[Job], params: Params, spec: SetSpec, accelerator: Accelerator, tracker: Tracker | None
) -> list[Job]:
    """Train the adapters that are not in the cache, and put them there; those that other processes trained.

    Those of single pictures are shared out over the processes; one for a whole set is trained by all of them together.
    """
    cache, checkpoints, machine = AdapterCache(WORK), Checkpoints(WORK), params.machine
    cached = {job.name for job in jobs if machine.reuse and cache.has(job.digest)}
    accelerator.wait_for_everyone()  # until all have looked, and before any has written one
    if cached and accelerator.is_main_process:
        tqdm.write(f"{len(cached)} of {len(jobs)} adapters are reused: same picture, caption, params and base")
    missing = [job for job in jobs if job.name not in cached]
    together = spec.adapter == "set" and accelerator.num_processes > 1
    with accelerator.split_between_processes(missing) as share:
        own = missing if together else share
    writing = own if accelerator.is_main_process or not together else []

    empty_caption = base.condition([""])
    # An accelerator's memory is for training from here on.
    base.move_encoders(torch.device("cpu"), text=spec.train.text_rate is None)
    if spec.train.gradient_checkpointing:
        recompute_in_backward(base.denoiser)
    setup = TrainingSetup(
        base,
        spec.train,
        empty_caption,
        objective_of(spec.train),
        checkpoints,
        pack_size=machine.pack,
        checkpoint_every=machine.checkpoint_every,
        callbacks=callbacks(base, tracker, params.tracking.pictures_every, spec.train) if tracker else Callbacks(),
        accelerator=accelerator if together else None,
    )
    with training_locks([WORK / job.digest for job in writing]):
        states = train_adapters(setup, own)
        # Cached only when all are trained: after a kill in between, the same adapters are missing as before, and so are
        # shared out and packed as before.
        accelerator.wait_for_everyone()
        for job in writing:
            state = states[job.name]
            if setup.objective.errors_fall and (warning := learned_little(curves_of(state, spec.train))):
                tqdm.write(f"{job.name}: {warning}")
            source = {"source": params.base.source, "revision": params.base.revision}
            cache.add(base, job, state, source, spec.train)
            checkpoints.forget(job.digest)
    accelerator.wait_for_everyone()
    return [job for job in missing if job.name not in states]


def write_outputs(
    key: str, jobs: Sequence[Job], spec: SetSpec, params: Params, tracker: Tracker, size: tuple[int, int]
) -> None:
    """Copy the adapters from the cache to models/adapters/<set>, write their curves, and log both.

    size: width and height of the pictures, for who paints with a logged adapter.
    """
    cache, out = AdapterCache(WORK), Path("models/adapters", key)
    with atomic_folder(out) as folder:
        for job in jobs:
            shutil.copyfile(cache.adapter(job.digest), folder / f"{job.name}.safetensors")
        write_index(folder, {e.name: f"{job.name}.safetensors" for job in jobs for e in (*job.examples, *job.held_out)})
    curves = {job.name: curves_of(cache.state(job.digest), spec.train) for job in jobs}
    write_curves(Path("reports/curves/sets", f"{key}.csv"), curves, spec.train)
    tracker.metrics({"final_loss": fmean(curve.final_loss for curve in curves.values())})
    for job in jobs:
        tracker.adapter(
            out / f"{job.name}.safetensors",
            params.base.source,
            params.base.revision,
            f"{key}-{job.name}",
            size=size,
        )


def log_curves(tracker: Tracker, jobs: Sequence[Job], settings: TrainSection) -> None:
    """The curves of adapters that other processes trained, as `callbacks` logs those of this one."""
    for job in jobs:
        curves = curves_of(AdapterCache(WORK).state(job.digest), settings)
        for step, (loss, norm) in enumerate(zip(curves.loss.tolist(), curves.grad_norm.tolist(), strict=True)):
            values = {"loss": loss, "grad_norm": norm, "learning_rate": learning_rate(settings, step)}
            tracker.metrics({METRICS[measure].format(job.name): value for measure, value in values.items()}, step)
        for step, losses in curves.validation.items():
            tracker.metric(f"{measure(job)}/{job.name}", float(losses.mean()), step)


def jobs_of(
    base: Base, examples: Sequence[Example], one_each: bool, section: Mapping[str, Any], hold_out: int = 0
) -> list[Job]:
    """A job for each picture, named as it is, or one for the whole set, of which it holds some out."""
    if one_each:
        return [Job(Path(e.name).stem, digest_of(base, [e], section), [e]) for e in examples]
    # By their digests: the same pictures whatever their order and the set's name.
    held_out = sorted(examples, key=lambda example: keyed_seed("hold out", example.digest))[:hold_out]
    learned = [example for example in examples if example not in held_out]
    return [Job("set", digest_of(base, examples, section), learned, held_out)]


def measure(job: Job) -> str:
    """What the loss at fixed noise is called in MLflow: a validation only if it is of pictures not learned from."""
    return "validation" if job.held_out else "loss_at_fixed_noise"


def digest_of(base: Base, examples: Sequence[Example], section: Mapping[str, Any]) -> str:
    """A digest of everything that an adapter depends on: only if all is the same, it is continued or reused."""
    inputs = [f"{example.name} {example.digest}" for example in examples]
    parts = [code_digest(TRAINING), base.digest, json.dumps(section, sort_keys=True), *inputs]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def callbacks(base: Base, tracker: Tracker, pictures_every: int | None, settings: TrainSection) -> Callbacks:
    """Every step of every adapter, each picture's loss at fixed noise, and pictures on the way, to MLflow."""

    def step(name: str, step: int, values: Mapping[str, float]) -> None:
        tracker.metrics({METRICS[measure].format(name): value for measure, value in values.items()}, step)

    def validation(job: Job, step: int, losses: Mapping[str, float]) -> None:
        tracker.metrics({f"{measure(job)}/{job.name}": fmean(losses.values())}, step)
        if len(losses) > 1:
            tracker.metrics({f"{measure(job)}/{job.name}/{name}": loss for name, loss in losses.items()}, step)

    def preview(jobs: Sequence[Job], step: int) -> None:
        try:
            sheet = preview_sheet(base, jobs, reads_text=settings.text_rate is not None)
        # The training goes on: it says more, and for certain, where it diverges, and needs less memory.
        except FloatingPointError as error:
            tqdm.write(f"no picture of step {step}: {error}")
            return
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            tqdm.write(f"no picture of step {step}: it does not fit into memory beside the training")
            free_cached_memory()
            return
        tracker.picture("training", Image.fromarray(sheet), step)

    return Callbacks(step, validation, preview, pictures_every)
