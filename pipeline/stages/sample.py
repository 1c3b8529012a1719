"""Stage `sample@<set>`: pictures from a set's adapters, and from the base alone, on the same noise."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pipeline.adapted_base import open_adapted_base
from pipeline.adapters.lora import read_adapter
from pipeline.adapters.store import INDEX, read_index
from pipeline.base.device import choose_device
from pipeline.frames.prepared import read_prepared
from pipeline.frames.sheets import grid
from pipeline.frames.tensors import read_pictures, to_arrays
from pipeline.grid import sample_grid
from pipeline.outputs import atomic_file, reading, require_output
from pipeline.params import load_params
from pipeline.processes.joining import all_processes
from pipeline.refiner import open_refiner
from pipeline.tracking import Tracker, track


def run(key: str) -> None:
    """Write reports/samples/<set>.png: a row for each caption and seed, a column for each adapter weight.

    With as many processes as there are to use; the first writes.
    """
    params = load_params()
    accelerator = all_processes(["sample", key], params.machine.processes, choose_device(params.machine.device))
    settings = params.get_set(key).sample
    prepared, adapters = require_output(Path("data/prepared", key), f"prepare@{key}"), Path("models/adapters", key)
    models = {"base": params.base.model_dump(), "refiner": params.refiner.model_dump()}
    section = {**models, "sample": settings.model_dump()}
    tracked: AbstractContextManager[Tracker | None] = nullcontext()
    if accelerator.is_main_process:
        tracked = track(f"sample@{key}", params.tracking, section, datasets={key: prepared}, tags=params.base.tags())
    with tracked as tracker:
        base = open_adapted_base(params.base, accelerator.device)
        refiner = open_refiner(params.refiner, params.base, accelerator.device)
        files = read_index(adapters)
        seeds = range(settings.seed, settings.seed + settings.seeds)
        rows, labels = [], []
        for row in read_prepared(prepared)[: settings.captions]:
            picture = read_pictures([prepared / row.file_name])
            with reading(adapters / INDEX):
                file = files[row.file_name]
            pictures = sample_grid(
                base,
                row.text,
                read_adapter(adapters / file, base.digest, base.device, base),
                seeds=seeds,
                weights=settings.weights,
                size=(picture.shape[-2], picture.shape[-1]),
                steps=settings.steps,
                guidance=settings.guidance,
                solver=settings.solver,
                fresh=settings.fresh_noise,
                refiner=refiner,
                batch=params.machine.batch,
                progress=partial(tqdm, desc=row.text[:40], unit="step", disable=tracker is None),
                accelerator=accelerator,
            )
            for seed, samples in zip(seeds, pictures, strict=True):
                rows.append([*to_arrays(picture), *to_arrays(samples)])
                labels.append(f"{row.text} (seed {seed})")
        if tracker is None:
            return
        columns = ["the set's picture", *(f"weight {weight:g}" for weight in settings.weights)]
        out = Path("reports/samples", f"{key}.png")
        with atomic_file(out) as partial_file:
            grid(rows, labels, columns).save(partial_file)
        tracker.picture("samples", out)
