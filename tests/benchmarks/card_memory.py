"""What a graphics card needs to hold: `python -m tests.benchmarks.card_memory [--shapes sd15 sd21 sdxl]`.

The project's own training step, frames and decoding on bases of true shape, without computing a number: torch's fake
tensors have shapes and no values, and every storage that is alive at once is counted. What a card adds is not in it:
the driver's own memory, libraries' workspaces and what the allocator cannot use (together 1 to 2 GB). Needs no GPU, and
minutes.
"""

import argparse
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.base.conditioning import Conditioning
from pipeline.base.noise_path import VariancePreserving
from pipeline.base.protocol import Base
from pipeline.params import load_params
from pipeline.sections import TrainSection
from pipeline.training.denoising import denoising_errors
from pipeline.training.draws import Batch
from pipeline.training.optimizers import RowOptimizer
from pipeline.training.pack import AdapterPack
from pipeline.training.recording import recompute_in_backward
from tests.benchmarks.full_size import SHAPES, TOKENS, Parts, Shape, base_of, build
from tests.tiny import usual_scheduler

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Peak(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most there ever were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self._known = weakref.WeakKeyDictionary[torch.UntypedStorage, int]()

    def count(self, tensors: Any) -> None:
        """Count the storages of these tensors, each once."""
        for tensor in pytree.tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._known:
                    size = storage.nbytes()
                    self._known[storage] = size
                    self.alive += size
                    weakref.finalize(storage, self._gone, size)
        self.most = max(self.most, self.alive)

    def _gone(self, size: int) -> None:
        self.alive -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count(result)
        return result


@contextmanager
def measured(models: Sequence[torch.nn.Module]) -> Iterator[Peak]:
    """The peak of what happens within, the models' weights included."""
    with Peak() as peak:
        peak.count([tensor for model in models for tensor in (*model.parameters(), *model.buffers())])
        yield peak


def conditioning_of(shape: Shape, count: int) -> Conditioning:
    """Captions of that shape, without values."""
    tensors = {"embedding": torch.zeros(count, TOKENS, shape.unet["cross_attention_dim"])}
    if shape.text_2 is not None:
        tensors["pooled"] = torch.zeros(count, shape.text_2["hidden_size"])
    return Conditioning(tensors)


def batch_of(shape: Shape, count: int) -> Batch:
    """Samples of that shape, without values."""
    latents = torch.zeros(count, *shape.latents)
    times, captions = torch.full((count,), 500), ("",) * count
    return Batch(latents, torch.zeros_like(latents), times, conditioning_of(shape, count), captions, (0,) * count)


def training(shape: Shape, base: Base, settings: TrainSection, adapters: int) -> Callable[[], None]:
    """Two steps of so many adapters side by side, as the trainer does them."""

    def work() -> None:
        pack = AdapterPack(base, [0] * adapters, settings)
        optimizers = [RowOptimizer(pack, row, settings) for row in range(adapters)]
        base.denoiser.train()
        with pack.attached():
            for _ in range(2):
                losses = denoising_errors(base, batch_of(shape, adapters * settings.batch))
                losses.view(adapters, -1).sum(1).sum().backward()
                pack.clip(1.0)
                for optimizer in optimizers:
                    optimizer.step()
                pack.zero_grad()
        base.denoiser.eval()

    return work


def frames(shape: Shape, base: Base, count: int) -> Callable[[], None]:
    """One evaluation of so many frames."""

    @torch.no_grad()
    def work() -> None:
        batch = batch_of(shape, count)
        base.predict(batch.clean, batch.times, batch.conditioning)

    return work


def decoding(shape: Shape, parts: Parts) -> Callable[[], None]:
    """One frame from its latents."""

    @torch.no_grad()
    def work() -> None:
        parts.vae.decode(torch.zeros(1, *shape.latents, dtype=parts.vae.dtype))

    return work


def peaks(shape: Shape, dtype: torch.dtype, settings: TrainSection) -> dict[str, int]:
    """What each kind of work needs at its peak, in bytes, by a label for it."""
    # Outside, as its levels are numbers, which fake tensors do not have.
    path = VariancePreserving.from_scheduler_config(usual_scheduler(shape.prediction_type).config)
    found: dict[str, int] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(dtype)
        parts = build(shape)
        torch.set_default_dtype(torch.float32)
        base = base_of(shape, parts, path)
        encoders = [part for part in (parts.vae, parts.text_encoder, parts.text_encoder_2) if part is not None]

        def find(label: str, work: Callable[[], None], models: Sequence[torch.nn.Module]) -> None:
            with measured(models) as peak:
                work()
            found[label] = peak.most

        for adapters, each in product((1, 8), (1, 3)):
            label = f"train {adapters} adapter{'s'[: adapters > 1]}, batch {each}"
            work = training(shape, base, settings.model_copy(update={"batch": each}), adapters)
            find(label, work, [parts.unet])  # the encoders are in the host's memory meanwhile
            recompute_in_backward(parts.unet)
            find(f"{label}, gradient_checkpointing", work, [parts.unet])
            parts.unet.disable_gradient_checkpointing()
        for count in (1, 2, 4, 8, 16):
            label = f"morph, {count} sample{'s'[: count > 1]} at once"
            find(label, frames(shape, base, count), [parts.unet, *encoders])
        find("decode a frame", decoding(shape, parts), [parts.unet, *encoders])
    return found


def main() -> None:
    """Count and print a table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    arguments = parser.parse_args()
    settings = load_params().train.model_copy(update={"rank": 16, "alpha": 16.0})
    for name in arguments.shapes:
        shape = SHAPES[name]
        columns = [peaks(shape, dtype, settings) for dtype in PRECISIONS.values()]
        print(f"\n| {shape.name}, {shape.side}x{shape.side}, GB | {' | '.join(PRECISIONS)} |")
        print("|---" * (1 + len(PRECISIONS)) + "|")
        for label in columns[0]:
            print(f"| {label} | {' | '.join(f'{column[label] / 1e9:.1f}' for column in columns)} |", flush=True)


if __name__ == "__main__":
    main()
