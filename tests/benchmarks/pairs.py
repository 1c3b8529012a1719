"""Pairs of held-out paintings with trained adapters, for the benchmarks of morphing."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pipeline.adapters.mixing import Adapter
from pipeline.base.protocol import Base
from pipeline.film import draw_latents
from pipeline.landscapes.world import HELD_OUT, Scene, caption
from pipeline.morphing.engine import EncodedKeyframe
from pipeline.sections import TrainSection
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.examples import encode_example
from pipeline.training.loop import Job, TrainingSetup, train_adapters
from pipeline.training.objectives import objective_of
from pipeline.training.pack import AdapterPack
from tests.benchmarks.shared import paintings, scenes_from

FIRST = HELD_OUT + 6_000_000


def scenes(pairs: int) -> list[Scene]:
    """Two unseen scenes for each pair, one after the other."""
    return scenes_from(FIRST, 2 * pairs)


def trained_keyframes(
    base: Base, of: Sequence[Scene], settings: TrainSection, pictures: torch.Tensor | None = None
) -> list[EncodedKeyframe]:
    """Every scene with an adapter of its own, all trained side by side. pictures: of them, (N, 3, H, W) uint8; None: as
    they are painted for the pocket."""
    if pictures is None:
        pictures = paintings(of)
    with TemporaryDirectory() as folder:
        examples = [
            encode_example(base, f"{i}", picture, caption(scene), False, Path(folder))
            for i, (picture, scene) in enumerate(zip(pictures, of, strict=True))
        ]
        jobs = [Job(example.name, example.name, [example]) for example in examples]
        setup = TrainingSetup(base, settings, base.condition([""]), objective_of(settings), Checkpoints(Path(folder)))
        weights = {name: state.tensors for name, state in train_adapters(setup, jobs).items()}
    keyframes = []
    for example, latents in zip(examples, draw_latents(base, pictures.float() / 255), strict=True):
        pack = AdapterPack(base, [0], settings)
        pack.down[0], pack.up[0] = (weights[example.name][f"weight/{part}"].to(base.device) for part in ("down", "up"))
        tensors = pack.tensors(0)
        names = {key.rsplit(".", 2)[0] for key in tensors}
        factors = {name: (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in sorted(names)}
        keyframes.append(
            EncodedKeyframe(latents, example.conditioning.to(base.device), ((Adapter(factors, pack.scale), 1.0),))
        )
    return keyframes
