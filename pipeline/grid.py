"""One caption over seeds and adapter weights: what an adapter has learned, at a glance."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator

from pipeline.adapters.mixing import Adapter
from pipeline.base.posterior import keyed_seed
from pipeline.base.protocol import Base
from pipeline.processes.chunks import in_chunks, one_each
from pipeline.sampling.adapted import adapted_conditioning
from pipeline.sampling.captions import sample_captions
from pipeline.sampling.consistency import Sampler
from pipeline.sampling.refining import Refiner
from pipeline.sampling.solver import Progress


def sample_grid(
    base: Base,
    caption: str,
    adapter: Adapter,
    *,
    seeds: Sequence[int],
    weights: Sequence[float],
    size: tuple[int, int],
    steps: int,
    guidance: float,
    solver: Sampler = "midpoint",
    fresh: float = 0.0,
    refiner: Refiner | None = None,
    batch: int | None = None,
    progress: Progress = iter,
    accelerator: Accelerator | None = None,
) -> torch.Tensor:
    """Pictures (seeds, weights, 3, H, W) of one caption. Weight 0 is the base alone; a row starts from one noise.

    size: (H, W) in pixels. fresh: as in `sample_captions`. refiner: for the last steps, without the adapter.
    batch: samples that go through the denoiser at once, of which a picture takes two under
    guidance; None: all. accelerator: of the processes that share the work; their pictures lie on the CPU.
    """
    shape = (base.latent_channels, *(side // base.pixels_per_latent for side in size))
    keys = [keyed_seed("sample", seed) for seed in seeds]
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(key)) for key in keys])
    noise = noise.repeat_interleave(len(weights), dim=0).to(base.device)
    of_each = [key for key in keys for _ in weights]
    adapters = [[(adapter, weight)] for _ in seeds for weight in weights]
    conditioning = adapted_conditioning(base, [caption] * len(adapters), adapters)
    refinement = None if refiner is None else refiner.refinement([caption], None if guidance == 1 else "")

    def sampled(chunk: slice) -> torch.Tensor:
        some = adapters[chunk]
        return sample_captions(
            base,
            noise[chunk],
            conditioning.take(chunk),
            some,
            steps=steps,
            guidance=guidance,
            solver=solver,
            seeds=of_each[chunk],
            fresh=fresh,
            progress=progress,
            refinement=None if refinement is None else refinement.take([0] * len(some)),
        )

    most = None if batch is None else batch if guidance == 1 else batch // 2
    latents = torch.cat(in_chunks(len(noise), most, sampled, accelerator)).to(base.device)
    pictures = one_each(list(latents), lambda latent: base.decode(latent[None]), accelerator)
    return torch.cat(list(pictures)).unflatten(0, (len(seeds), len(weights)))
