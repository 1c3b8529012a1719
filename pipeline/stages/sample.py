"""Stage `sample@<set>`: pictures from a set's adapters, and from the base alone, on the same noise."""

from pathlib import Path

import torch
from tqdm import tqdm

from pipeline.adapters.lora import keyed_seed, read_adapter
from pipeline.adapters.mixing import Adapter
from pipeline.adapters.store import read_index
from pipeline.base.device import choose_device
from pipeline.base.opening import open_base
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.frames.sheets import grid
from pipeline.frames.tensors import read_pictures, to_arrays
from pipeline.outputs import atomic_file, require_output
from pipeline.params import SampleSection, load_params
from pipeline.pictures.metadata import read_rows
from pipeline.sampling.guidance import sample_captions
from pipeline.tracking import track


def run(key: str) -> None:
    """Write reports/samples/<set>.png: a row for each caption and seed, a column for each adapter weight."""
    params = load_params()
    settings = params.get_set(key).sample
    prepared, adapters = require_output(Path("data/prepared", key), f"prepare@{key}"), Path("models/adapters", key)
    section = {"base": params.base.model_dump(), "sample": settings.model_dump()}
    with track(f"sample@{key}", params.tracking, section, datasets={key: prepared}, tags=params.base.tags()) as tracker:
        base = open_base(params.base, choose_device(params.machine.device))
        files = read_index(adapters)
        rows, labels = [], []
        for row in read_rows(prepared)[: settings.captions]:
            keyframe = read_pictures([prepared / row.file_name])
            adapter = read_adapter(adapters / files[row.file_name], base.digest, base.device)
            size = (keyframe.shape[-2], keyframe.shape[-1])
            pictures = paint_grid(base, row.text, adapter, settings, size, params.machine.batch)
            for seed, line in enumerate(pictures, start=settings.seed):
                rows.append([*to_arrays(keyframe), *to_arrays(line)])
                labels.append(f"{row.text} (seed {seed})")
        columns = ["the set's picture", *(f"weight {weight:g}" for weight in settings.weights)]
        out = Path("reports/samples", f"{key}.png")
        with atomic_file(out) as partial:
            grid(rows, labels, columns).save(partial)
        tracker.picture("samples", out)


def paint_grid(
    base: StableDiffusion,
    caption: str,
    adapter: Adapter,
    settings: SampleSection,
    size: tuple[int, int],
    batch: int | None,
) -> torch.Tensor:
    """Pictures (seeds, weights, 3, H, W) of one caption. Weight 0 is the base alone; a row starts from one noise.

    `batch` pictures at most go through the UNet at once, twice that under guidance; None: all.
    """
    channels, factor = base.unet.config.in_channels, base.pixels_per_latent
    seeds, weights = range(settings.seed, settings.seed + settings.seeds), torch.tensor(settings.weights)
    noise = torch.cat(
        [
            torch.randn(
                1, channels, size[0] // factor, size[1] // factor,
                generator=torch.Generator().manual_seed(keyed_seed("sample", seed)),
            )
            for seed in seeds
        ]
    )  # fmt: skip
    noise = noise.repeat_interleave(len(weights), dim=0).to(base.device)
    conditioning = base.condition([caption])
    parts = [
        sample_captions(
            base,
            part,
            conditioning.expand(len(part), -1, -1),
            [adapter],
            weight[None].to(base.device),
            steps=settings.steps,
            guidance=settings.guidance,
            progress=lambda steps: tqdm(list(steps), desc=caption[:40], unit="step"),
        )
        for part, weight in zip(
            noise.split(batch or len(noise)), weights.repeat(len(seeds)).split(batch or len(noise)), strict=True
        )
    ]
    return base.decode(torch.cat(parts)).unflatten(0, (len(seeds), len(weights)))
