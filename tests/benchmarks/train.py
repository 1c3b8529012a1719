"""Adapters side by side against one after another: `python -m tests.benchmarks.train [--adapters 8] [--steps 20]`.

Both train the same single-picture adapters for the same steps and examples in float32, in one run. The plain loop is
the one that published scripts have: batch 1, peft's layers, VAE and text encoder at every step. Prints the ratio, what
each part of the gain is worth, and the ratio by number of adapters.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from pipeline.base.conditioning import Conditioning
from pipeline.base.protocol import Base
from pipeline.landscapes.world import HELD_OUT, caption
from pipeline.params import load_params
from pipeline.sections import TrainSection
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.examples import Example, encode_example
from pipeline.training.loop import Job, TrainingSetup, train_adapters
from pipeline.training.objectives import objective_of
from tests.benchmarks.shared import open_pocket, paintings, scenes_from
from tests.peft_adapters import adapter_weights, add_adapter

FIRST = HELD_OUT + 5_000_000


def plain_loop(base: Base, pictures: torch.Tensor, captions: Sequence[str], settings: TrainSection) -> None:
    """Each adapter by itself, everything computed at every step."""
    _one_by_one(base, len(pictures), settings, lambda i: base.encode(pictures[i : i + 1]).sample(_generator()),
                lambda i: base.condition([captions[i]]))  # fmt: skip


def cached_loop(base: Base, examples: Sequence[Example], settings: TrainSection) -> None:
    """Each adapter by itself, from latents and captions encoded once."""
    _one_by_one(base, len(examples), settings, lambda i: examples[i].posterior.sample(_generator()).to(base.device),
                lambda i: examples[i].conditioning)  # fmt: skip


def _one_by_one(
    base: Base,
    count: int,
    settings: TrainSection,
    latents_of: Callable[[int], torch.Tensor],
    conditioning_of: Callable[[int], Conditioning],
) -> None:
    for index in range(count):
        weights = add_adapter(base.denoiser, "plain", settings.rank, settings.alpha, seed=index)
        optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        base.denoiser.train()
        for _ in range(settings.steps):
            latents, conditioning = latents_of(index), conditioning_of(index)
            noise = torch.randn(latents.shape).to(latents)
            times = base.path.times_at(torch.rand(1, generator=_generator()))
            noisy = base.path.add_noise(latents, noise, times)
            prediction = base.predict(noisy, times, conditioning)
            F.mse_loss(prediction, base.path.target(latents, noise, times)).backward()
            torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        assert adapter_weights(base.denoiser, "plain")
        base.denoiser.delete_adapters("plain")
        base.denoiser.eval()


def ours(base: Base, examples: Sequence[Example], settings: TrainSection, pack: int, empty: Conditioning) -> None:
    """The trainer of the pipeline, checkpoints and validation included."""
    with TemporaryDirectory() as folder:
        jobs = [Job(example.name, example.name, [example]) for example in examples]
        checkpoints = Checkpoints(Path(folder))
        train_adapters(TrainingSetup(base, settings, empty, objective_of(settings), checkpoints, pack_size=pack), jobs)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(int(torch.randint(2**31, ())))


def seconds(base: Base, work: Callable[[], None]) -> float:
    """Wall time of one call."""
    if base.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if base.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="models/pocket")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    # peft leaves its wrappers in a UNet, so the plain loops have one of their own.
    base, wrapped = open_pocket(arguments.base), open_pocket(arguments.base)
    settings = load_params().train.model_copy(update={"steps": arguments.steps, "batch": 1})
    scenes = scenes_from(FIRST, max(16, arguments.adapters))
    pictures = paintings(scenes)
    captions = [caption(scene) for scene in scenes]
    empty, count = base.condition([""]), arguments.adapters
    floats = pictures[:count].float() / 255
    with TemporaryDirectory() as cache:  # which examples are read from as they are needed
        examples = [
            encode_example(base, f"p{i}", pictures[i], captions[i], False, Path(cache)) for i in range(len(scenes))
        ]
        ways: dict[str, Callable[[], None]] = {
            "plain loop": lambda: plain_loop(wrapped, floats, captions[:count], settings),
            "plain loop from caches": lambda: cached_loop(wrapped, examples[:count], settings),
            "ours, one by one": lambda: ours(base, examples[:count], settings, 1, empty),
            f"ours, {count} side by side": lambda: ours(base, examples[:count], settings, count, empty),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in tqdm(range(arguments.rounds), desc="rounds"):
            for name, work in ways.items():  # in turns, so that a busy machine is busy for all
                times[name].append(seconds(base, work))
        plain = np.median(times["plain loop"])
        print(f"{count} adapters, {arguments.steps} steps of 1 each, float32, {base.device.type}:")
        for name, taken in times.items():
            each = np.median(taken) / (count * arguments.steps) * 1000
            ratio = plain / np.median(taken)
            print(f"  {name}: {each:.1f} ms an adapter's step, {ratio:.2f} times the plain loop's speed")
        print("by number of adapters, against the plain loop for one:")
        for number in (1, 2, 4, 8, 16):
            taken = min(seconds(base, lambda n=number: ours(base, examples[:n], settings, n, empty)) for _ in range(2))
            ratio = plain / count / (taken / number)
            print(f"  {number}: {taken / number / arguments.steps * 1000:.1f} ms an adapter's step, {ratio:.2f} times")


if __name__ == "__main__":
    main()
