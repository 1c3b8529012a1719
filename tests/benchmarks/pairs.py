"""Pairs of held-out paintings with trained adapters, for the benchmarks of morphing."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from pipeline.adapters.checkpoints import Checkpoints
from pipeline.adapters.encoding import encode_sample
from pipeline.adapters.mixing import Adapter
from pipeline.adapters.pack import AdapterPack
from pipeline.adapters.training import Job, train_adapters
from pipeline.base.checking import base_digest
from pipeline.base.device import choose_device
from pipeline.base.opening import open_base
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.images.painter import paint
from pipeline.images.world import HELD_OUT, Scene, caption, draw_scene
from pipeline.morphing.engine import Keyframe
from pipeline.params import BaseSection, TrainSection
from pipeline.stages.morph import draw_latents

FIRST = HELD_OUT + 6_000_000


def open_pocket(source: str = "models/pocket", dtype: str = "float32") -> StableDiffusion:
    """The pocket on the best device there is."""
    section = BaseSection(source=source, revision=None, config=None, dtype=dtype)
    return open_base(section.model_copy(update={"revision": base_digest(section)}), choose_device("auto"))


def scenes(count: int) -> list[Scene]:
    """Two unseen scenes for each pair, one after the other."""
    return [draw_scene(FIRST + index) for index in range(2 * count)]


def paintings(of: Sequence[Scene]) -> torch.Tensor:
    """Pictures (N, 3, 128, 128) in [0, 1]."""
    painted = np.stack([paint(scene, 128, 128) for scene in of])
    return torch.from_numpy(painted).permute(0, 3, 1, 2).float() / 255


def trained_keyframes(base: StableDiffusion, of: Sequence[Scene], settings: TrainSection) -> list[Keyframe]:
    """Every scene with an adapter of its own, all trained side by side."""
    pictures = paintings(of)
    with TemporaryDirectory() as folder:
        samples = [
            encode_sample(base, f"{i}", (picture * 255).round().byte(), caption(scene), False, Path(folder))
            for i, (picture, scene) in enumerate(zip(pictures, of, strict=True))
        ]
        jobs = [Job(sample.name, sample.name, [sample]) for sample in samples]
        states = train_adapters(base, jobs, settings, Checkpoints(Path(folder)), empty=base.condition([""]))
    keyframes = []
    for sample, latents in zip(samples, draw_latents(base, pictures), strict=True):
        pack = AdapterPack(base.unet, [0], settings)
        pack.down[0], pack.up[0] = (
            states[sample.name].tensors[f"weight/{part}"].to(base.device) for part in ("down", "up")
        )
        tensors = pack.tensors(0)
        names = {key.rsplit(".", 2)[0] for key in tensors}
        factors = {name: (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in sorted(names)}
        keyframes.append(Keyframe(latents, sample.conditioning[0], Adapter(factors, pack.scale)))
    return keyframes
