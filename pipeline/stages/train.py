"""Stage `train@<set>`: LoRA adapters of a prepared set, one for each picture or one for all."""

import csv
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from datasets import disable_progress_bars, load_dataset
from tqdm import tqdm

import pipeline
from pipeline.adapters.checkpoints import work_folder
from pipeline.adapters.lora import save_adapter
from pipeline.adapters.store import write_index
from pipeline.adapters.training import Curves, Sample, train_adapter
from pipeline.base.device import choose_device
from pipeline.base.opening import open_base
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.images.metadata import read_rows
from pipeline.outputs import made, whole_file, whole_folder
from pipeline.params import BaseSection, TrainSection, load_params
from pipeline.tracking import Tracker, track

WORK = Path(".work/train")
TRAINED = "trained"  # its name in the UNet: a module's name must not have dots, a picture's may


def run(key: str) -> None:
    """Write models/adapters/<set>/ and reports/curves/sets/<set>.csv."""
    params = load_params()
    spec = params.the_set(key)
    prepared, out = made(Path("data/prepared", key), f"prepare@{key}"), Path("models/adapters", key)
    section = {"base": params.base.model_dump(), "train": spec.train.model_dump(), "adapter": spec.adapter}
    with track(f"train@{key}", params.tracking, section, datasets={key: prepared}, tags=params.base.tags()) as tracker:
        base = open_base(params.base, choose_device(params.machine.device))
        samples = encode_set(base, prepared)
        jobs = {Path(sample.name).stem: [sample] for sample in samples} if spec.adapter == "image" else {"set": samples}
        with work_folder(WORK / f"{key}-{_digest(base, samples, section)}") as work:
            curves = {
                name: _train_one(
                    base, name, job, params.base, spec.train, work, params.machine.checkpoint_every, tracker
                )
                for name, job in jobs.items()
            }
            with whole_folder(out) as folder:
                for name in jobs:
                    (work / f"{name}.safetensors").replace(folder / f"{name}.safetensors")
                files = {sample.name: f"{name}.safetensors" for name, job in jobs.items() for sample in job}
                write_index(folder, files)
            write_curves(Path("reports/curves/sets", f"{key}.csv"), curves, spec.train.learning_rate)
        # A step's loss is mostly its timesteps': a mean over the last tenth says where the training ended.
        last = max(1, spec.train.steps // 10)
        final = {name: float(curve.loss[-last:].mean()) for name, curve in curves.items()}
        tracker.metrics({"final_loss": fmean(final.values())})
        height, width = (side * base.pixels_per_latent for side in samples[0].posterior.mean.shape[-2:])
        for name in jobs:
            tracker.adapter(
                out / f"{name}.safetensors",
                params.base.source,
                params.base.revision,
                f"{key}-{name}",
                size=(width, height),
            )


def encode_set(base: StableDiffusion, folder: Path) -> list[Sample]:
    """Every picture of a prepared imagefolder, encoded once; read with `datasets`, as anyone else could read it."""
    disable_progress_bars()
    samples = []
    # A cache of its own, for this once: `datasets` takes a changed picture with the same time stamp for the old one.
    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=cache)
        for listed, row in zip(read_rows(folder), tqdm(rows, desc="encode", unit="picture"), strict=True):
            assert row["text"] == listed.text, f"{folder}: `datasets` reads rows in another order than metadata.jsonl"
            pixels = torch.from_numpy(np.array(row["image"].convert("RGB"))).permute(2, 0, 1)
            content = hashlib.sha256(pixels.numpy().tobytes() + listed.text.encode()).hexdigest()
            posterior, conditioning = base.encode(pixels[None].float() / 255), base.condition([listed.text])
            samples.append(Sample(listed.file_name, content, posterior, conditioning, listed.text))
    return samples


def _digest(base: StableDiffusion, samples: Sequence[Sample], section: Mapping[str, Any]) -> str:
    """Of everything that the adapters depend on: unfinished work goes on only where all of it is the same."""
    root = Path(pipeline.__file__).parent
    code = [
        path.read_text(encoding="utf-8") for room in ("adapters", "base") for path in sorted((root / room).glob("*.py"))
    ]
    versions = [f"{name} {version(name)}" for name in ("torch", "diffusers", "peft", "accelerate")]
    parts = [base.digest, json.dumps(section, sort_keys=True), *(sample.digest for sample in samples), *versions, *code]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _train_one(
    base: StableDiffusion,
    name: str,
    samples: Sequence[Sample],
    base_section: BaseSection,
    settings: TrainSection,
    work: Path,
    checkpoint_every: int,
    tracker: Tracker,
) -> Curves:
    """Train one adapter into the work folder, or take it from there when it is finished."""

    def on_step(step: int, values: Mapping[str, float]) -> None:
        tracker.metrics({f"{measure}/{name}": value for measure, value in values.items()}, step)

    curves = train_adapter(
        base, TRAINED, samples, settings, work / f"{name}.checkpoint", checkpoint_every, on_step, label=name
    )
    notes = {
        "base": {"source": base_section.source, "revision": base_section.revision, "digest": base.digest},
        "captions": {sample.name: sample.caption for sample in samples},
        "inputs": {sample.name: sample.digest for sample in samples},
        "rank": settings.rank,
        "alpha": settings.alpha,
        "train": settings.model_dump(),
    }
    save_adapter(work / f"{name}.safetensors", base.unet, TRAINED, notes)
    base.unet.delete_adapters(TRAINED)
    return curves


def write_curves(path: Path, curves: Mapping[str, Curves], learning_rate: float) -> None:
    """One line a step: the means over the adapters, then each adapter's own loss."""
    losses = torch.stack([curve.loss for curve in curves.values()])
    norms = torch.stack([curve.grad_norm for curve in curves.values()])
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "learning_rate", "loss", "grad_norm", *(f"loss {name}" for name in curves)])
        for step in range(losses.shape[1]):
            figures = [losses[:, step].mean(), norms[:, step].mean(), *losses[:, step]]
            writer.writerow([step, learning_rate, *(f"{figure:.6g}" for figure in figures)])
