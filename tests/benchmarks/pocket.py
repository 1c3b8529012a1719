"""What the pocket can do, measured: `python -m tests.benchmarks.pocket [--sheet models/pocket/samples.png]`.

Prints the figures of its card: the autoencoder on unseen paintings and on photographs, whether captions are obeyed,
how far samples lie from paintings, how smooth captions are, how well inversion comes back, and what one
evaluation costs. Held-out seeds only. The sheet sets samples under paintings with the same captions.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from tqdm import tqdm

from pipeline.base.conditioning import Conditioning, Control
from pipeline.base.protocol import Base
from pipeline.distances.perceptual import perceptual
from pipeline.editing.edges import edges_of
from pipeline.editing.kept import edges_kept
from pipeline.editing.transfer import Transfer, transferred
from pipeline.evaluation.fidelity import psnr
from pipeline.landscapes.painter import paint_between
from pipeline.landscapes.world import HELD_OUT, Scene, caption
from pipeline.pocket.sheet import FINEST, Sampling, sample_scenes, sample_sheet
from pipeline.sampling.guidance import predictor
from pipeline.sampling.solver import Progress, invert, sample
from tests.benchmarks.bands import RINGS, change_shares, coherences, power_shares, spectra
from tests.benchmarks.classifier import accuracies, features, frechet_distance, train_reader
from tests.benchmarks.orbs import count_orbs
from tests.benchmarks.shared import open_pocket, paintings, photographs, scenes_from

CLASSIFIED, DISTRIBUTED, PAIRS, POINTS = 500, 2000, 50, 17
DETAILED, WAYS, WAY_POINTS, ORBS, EDGED = 24, 12, 17, 100, 48
GUIDED = {
    "guidance 2, 25 steps of the midpoint rule": Sampling(25, 2.0),
    "guidance 3.5, 25 steps of ddim with fresh noise": replace(FINEST, steps=25),
}
TO_READ = 8000
# Apart from each other, all beyond HELD_OUT: what is measured, what the classifier learns, two sets to compare.
MEASURED, READ, FIRST, SECOND = (HELD_OUT + 1_000_000 * number for number in (0, 1, 2, 3))


def reconstruction(base: Base, pictures: torch.Tensor) -> torch.Tensor:
    """PSNR (N,) of what the autoencoder makes of pictures."""
    return torch.cat([psnr(base.decode(base.encode(part).mean), part) for part in pictures.split(20)])


def drawn_latents(base: Base, pictures: torch.Tensor) -> torch.Tensor:
    """One draw from the posterior of each picture, as a morph inverts it."""
    return base.encode(pictures).sample(torch.Generator().manual_seed(0))


@torch.no_grad()
def caption_losses(base: Base, pictures: torch.Tensor, captions: list[str]) -> tuple[float, float]:
    """Denoising loss with the right captions and with those of other pictures, at the same noise and timesteps."""
    generator = torch.Generator().manual_seed(0)
    latents, conditioning = drawn_latents(base, pictures), base.condition(captions)
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.tensor([base.path.time_at(number / len(latents)) for number in range(len(latents))])
    noisy, target = base.path.add_noise(latents, noise, timesteps), base.path.target(latents, noise, timesteps)
    losses = [
        float((base.predict(noisy, timesteps, given) - target).square().mean())
        for given in (conditioning, conditioning.take([*range(1, len(latents)), 0]))
    ]
    return losses[0], losses[1]


@torch.no_grad()
def round_trip(base: Base, pictures: torch.Tensor, captions: list[str], steps: int) -> tuple[float, float]:
    """Mean PSNR that inversion and sampling cost beyond the autoencoder, and the std of the inverted noise."""
    predict = predictor(base, base.condition(captions))
    noise = invert(drawn_latents(base, pictures), predict, base.path, steps, progress_bar("invert"))
    back = base.decode(sample(noise, predict, base.path, steps, progress_bar("back")))
    return float((reconstruction(base, pictures) - psnr(back, pictures)).mean()), float(noise.std())


@torch.no_grad()
def jumps(base: Base, pairs: Sequence[tuple[Scene, Scene]], points: int) -> torch.Tensor:
    """Largest over mean neighbouring perceptual distance (P,) on the way between two captions, from one noise each."""
    found = []
    for number, (one, other) in enumerate(tqdm(pairs, desc="caption pairs", unit="pair")):
        first, second = base.condition([caption(one)]), base.condition([caption(other)])
        conditioning = Conditioning.lerp(first, second, torch.linspace(0, 1, points))
        shape = (1, base.latent_channels, 16, 16)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(number)).expand(points, -1, -1, -1)
        frames = base.decode(sample(noise, predictor(base, conditioning), base.path, 25))
        steps = perceptual(frames[:-1], frames[1:])
        found.append(steps.max() / steps.mean())
    return torch.stack(found)


def samples(base: Base, scenes: Sequence[Scene], how: Sampling, label: str) -> torch.Tensor:
    """What the pocket makes of the scenes' captions, (N, 3, 128, 128) in [0, 1]."""
    parts = [
        sample_scenes(base, scenes[first : first + 50], how, seed=first)
        for first in tqdm(range(0, len(scenes), 50), desc=label, unit="batch")
    ]
    return torch.cat(parts)


def milliseconds(base: Base) -> float:
    """Median time of one evaluation of one sample on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    conditioning, noise = base.condition(["a lake"]), torch.randn(1, base.latent_channels, 16, 16)
    times = []
    with torch.no_grad():
        for _ in range(30):
            start = time.perf_counter()
            base.predict(noise, torch.tensor([500]), conditioning)
            times.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return float(np.median(times) * 1000)


def progress_bar(label: str) -> Progress:
    """A progress bar round the steps."""

    def progress(steps: Iterable[int]) -> Iterable[int]:
        return tqdm(list(steps), desc=label, unit="step")

    return progress


def measure_autoencoder(base: Base) -> None:
    """PSNR on unseen paintings and on photographs."""
    pictures = paintings(scenes_from(MEASURED, 500)).float() / 255
    print(f"autoencoder, {len(pictures)} unseen paintings: {float(reconstruction(base, pictures).mean()):.2f} dB")
    found = {name: float(reconstruction(base, picture)[0]) for name, picture in photographs().items()}
    print(f"autoencoder, {len(found)} photographs: {np.mean(list(found.values())):.2f} dB")
    print("  " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()))


def measure_detail(base: Base) -> None:
    """Fine detail by cycles across the picture: the autoencoder's, that of samples, and how it changes along a way."""
    scenes = scenes_from(MEASURED, DETAILED)
    pictures = paintings(scenes).float() / 255
    true = spectra(pictures)
    decoded = spectra(base.decode(base.encode(pictures).mean))
    print(f"autoencoder, {DETAILED} unseen paintings, power: {_in_rings(power_shares(decoded, true))}")
    print(f"autoencoder, {DETAILED} unseen paintings, coherence: {_in_rings(coherences(decoded, true))}")
    described = scenes_from(MEASURED, 4 * DETAILED)
    theirs = spectra(paintings(described).float() / 255)
    for label, how in GUIDED.items():
        made = spectra(samples(base, described, how, label))
        print(f"{len(made)} samples with {label}, power: {_in_rings(power_shares(made, theirs))}")
    others = [replace(scene, seed=first.seed) for scene, first in zip(scenes_from(FIRST, WAYS), scenes, strict=False)]
    ways = torch.stack([_way(one, other) for one, other in zip(scenes, others, strict=False)])
    flat = ways.flatten(0, 1)
    shown = torch.cat([base.decode(base.encode(part).mean) for part in flat.split(WAY_POINTS)]).view_as(ways)
    change = change_shares(shown, ways)
    over = [
        one / other
        for one, other in zip(change, power_shares(spectra(shown.flatten(0, 1)), spectra(flat)), strict=True)
    ]
    print(f"along {WAYS} painted ways, change between neighbours: {_in_rings(change)}, over power: {_in_rings(over)}")


def _way(one: Scene, other: Scene) -> torch.Tensor:
    """The painter's own way between two scenes of one place, (F, 3, 128, 128) in [0, 1]."""
    painted = [paint_between(one, other, mix, 128, 128) for mix in np.linspace(0, 1, WAY_POINTS)]
    return torch.from_numpy(np.stack(painted)).permute(0, 3, 1, 2).float() / 255


def _in_rings(values: Sequence[float]) -> str:
    return ", ".join(f"{low} to {high} {value:.3f}" for (low, high), value in zip(RINGS, values, strict=True))


def measure_captions(base: Base) -> None:
    """Whether captions are obeyed, and how far samples lie from paintings."""
    scenes = scenes_from(MEASURED, 200)
    right, wrong = caption_losses(base, paintings(scenes).float() / 255, [caption(scene) for scene in scenes])
    print(f"denoising loss with the right caption {right:.4f}, with another's {wrong:.4f}")
    taught, checked = scenes_from(READ, TO_READ), scenes_from(SECOND, DISTRIBUTED)
    reader = train_reader(paintings(taught), taught)
    unseen = paintings(checked).float() / 255
    _print_reading("unseen paintings", accuracies(reader, unseen, checked))
    asked = scenes_from(MEASURED, CLASSIFIED)
    for label, how in {"no guidance": Sampling(25, 1.0), **GUIDED}.items():
        made = samples(base, asked, how, label)
        _print_reading(f"{len(made)} samples with {label}", accuracies(reader, made, asked))
    described = scenes_from(FIRST, DISTRIBUTED)
    theirs, made = features(reader, unseen), samples(base, described, Sampling(25, 1.0), "distribution")
    others = features(reader, paintings(described).float() / 255)
    print(
        f"Frechet distance to {DISTRIBUTED} unseen paintings: {DISTRIBUTED} samples without guidance "
        f"{frechet_distance(features(reader, made), theirs):.3f}, "
        f"{DISTRIBUTED} other paintings {frechet_distance(others, theirs):.3f}"
    )


def _print_reading(of: str, found: dict[str, float]) -> None:
    print(f"read rightly off {of}: " + ", ".join(f"{name} {share:.1%}" for name, share in found.items()))


def measure_orbs(base: Base) -> None:
    """How often a caption's one sun or moon is painted twice, or not at all."""
    scenes = [scene for scene in scenes_from(MEASURED, 4 * ORBS) if scene.orb][:ORBS]
    painted = paintings(scenes).float() / 255
    made = {f"samples with {label}": samples(base, scenes, how, label) for label, how in GUIDED.items()}
    for label, shown in {"paintings": painted, **made}.items():
        pictures = shown.permute(0, 2, 3, 1).numpy()
        counts = [count_orbs(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
        more = sum(count > 1 for count in counts)
        print(f"of {ORBS} {label} with a sun or moon: more than one in {more}, none found in {counts.count(0)}")


def measure_control(base: Base) -> None:
    """How well the shipped ControlNet keeps the edges of paintings, with their captions and without."""
    scenes = scenes_from(MEASURED, EDGED)
    pictures = paintings(scenes).float() / 255
    net = ControlNetModel.from_pretrained("models/pocket-canny").eval()
    noise = torch.randn(EDGED, base.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    edges = Control(net, edges_of(pictures, sigma=1.0, low=0.2, high=0.4), 1.0)
    transfer = Transfer(steps=20, strength=1.0, start="noise")
    for label, captions in (("their captions", [caption(scene) for scene in scenes]), ("no caption", [""] * EDGED)):
        conditioning = base.condition(captions)
        for control in (None, edges):
            made = transferred(base, noise[None], conditioning, [()] * EDGED, transfer, control=control)
            kept = edges_kept(pictures, base.decode(made)).mean()
            print(f"samples with {label} and {'edges' if control else 'no edges'}: {float(kept):.2f} of the edges kept")


def measure_smoothness(base: Base) -> None:
    """How evenly pictures change on the way between two captions."""
    pairs = list(zip(scenes_from(MEASURED, PAIRS), scenes_from(FIRST, PAIRS), strict=True))
    found = jumps(base, pairs, POINTS)
    over = int((found > 3).sum())
    print(
        f"captions, {PAIRS} pairs at {POINTS} points: largest over mean step {float(found.mean()):.2f} on average, "
        f"{float(found.max()):.2f} at most, above 3 in {over}"
    )


def measure_inversion(base: Base) -> None:
    """How well inversion comes back."""
    scenes = scenes_from(MEASURED, 48)
    pictures = paintings(scenes).float() / 255
    gap, std = round_trip(base, pictures, [caption(scene) for scene in scenes], steps=10)
    drawn = psnr(base.decode(drawn_latents(base, pictures)), pictures)
    floor = float((reconstruction(base, pictures) - drawn).mean())
    print(f"inversion and back, 10 steps, no adapter: {gap:.2f} dB under the autoencoder; inverted std {std:.3f}")
    print(f"the drawn latents that it starts from: {floor:.2f} dB under the autoencoder")


def measure_speed(base: Base) -> None:
    """What one evaluation costs."""
    print(f"one evaluation of one sample on one core: {milliseconds(base):.0f} ms")


MEASURES: dict[str, Callable[[Base], None]] = {
    "speed": measure_speed,
    "autoencoder": measure_autoencoder,
    "detail": measure_detail,
    "orbs": measure_orbs,
    "control": measure_control,
    "inversion": measure_inversion,
    "smoothness": measure_smoothness,
    "captions": measure_captions,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="models/pocket")
    parser.add_argument("--only", choices=MEASURES, nargs="+", default=list(MEASURES))
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    base = open_pocket(arguments.base, device="cpu")
    for name in arguments.only:
        MEASURES[name](base)
    if arguments.sheet:
        sample_sheet(base, progress_bar("sheet")).save(arguments.sheet)


if __name__ == "__main__":
    main()
