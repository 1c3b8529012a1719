"""Stage `morph@<morph>`: frames between keyframes, with adapters, without them, and the cross-fade."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from tqdm import tqdm

from pipeline.adapters.lora import keyed_seed, read_adapter
from pipeline.adapters.store import read_index
from pipeline.base.device import choose_device
from pipeline.base.opening import open_base
from pipeline.base.stable_diffusion import Posterior, StableDiffusion
from pipeline.distances.perceptual import perceptual
from pipeline.frames.clips import write_frames, write_mp4, write_webp
from pipeline.frames.sheets import strip
from pipeline.frames.tensors import Frame, read_pictures, to_arrays
from pipeline.frames.variants import VARIANTS
from pipeline.morphing.engine import (
    Bars,
    Borrowing,
    Keyframe,
    Recipe,
    cross_fade,
    invert_keyframes,
    morph_segment,
    paced_alphas,
)
from pipeline.morphing.interpolation import with_real_ends
from pipeline.morphing.pacing import even
from pipeline.outputs import atomic_folder, require_output
from pipeline.params import MorphSection, load_params
from pipeline.pictures.metadata import prepared_name, read_rows
from pipeline.sampling.solver import FixedPoint, Progress
from pipeline.tracking import track

FOLDERS = {variant.label: variant.folder for variant in VARIANTS}


@dataclass(frozen=True)
class Take:
    """One way through all keyframes: decoded frames (N, 3, H, W) in [0, 1] a segment, its alphas, and the mean std of
    the inverted noise (1 is ideal)."""

    segments: list[torch.Tensor]
    alphas: list[torch.Tensor]
    noise_std: float


def run(key: str) -> None:
    """Write data/morphs/<morph>/: frames, the two baselines, the autoencoder's floor, clips, strip and morph.json."""
    params = load_params()
    spec = params.get_morph(key)
    settings = spec.morph
    prepared = require_output(Path("data/prepared", spec.set), f"prepare@{spec.set}")
    adapters = require_output(Path("models/adapters", spec.set), f"train@{spec.set}")
    section = {"base": params.base.model_dump(), **spec.model_dump()}
    with track(
        f"morph@{key}", params.tracking, section, datasets={spec.set: prepared}, tags=params.base.tags()
    ) as tracker:
        base = open_base(params.base, choose_device(params.machine.device))
        captions = {row.file_name: row.text for row in read_rows(prepared)}
        names = [prepared_name(name) for name in spec.keyframes]
        pictures = read_pictures(prepared / name for name in names)
        latents = draw_latents(base, pictures)
        conditioning = base.condition([captions[name] for name in names])
        recipe = recipe_of(settings, base)
        files = read_index(adapters)
        loaded = {file: read_adapter(adapters / file, base.digest, base.device) for file in {files[n] for n in names}}

        takes = {}
        for label, with_adapters in (("morph", True), ("without adapters", False)):
            keyframes = [
                Keyframe(latents[i], conditioning[i], loaded[files[name]] if with_adapters else None)
                for i, name in enumerate(names)
            ]
            takes[label] = run_through(base, keyframes, settings, recipe, params.machine.batch, label)
        way = [*pictures, pictures[0]] if settings.loop else list(pictures)
        evenly = even(frames_of(settings))
        faded = [cross_fade(a, b, evenly.tolist()) for a, b in pairwise(way)]
        shown = {label: to_arrays(one_after_another(take.segments, settings.loop)) for label, take in takes.items()}
        shown["cross-fade"] = to_arrays(one_after_another(faded, settings.loop))

        between = frames_of(settings) - 1
        stops = [index * between for index in range(len(names))]
        count = len(shown["morph"])
        clip = corrected(takes["morph"], way, settings)
        alphas = {label: take.alphas for label, take in takes.items()} | {"cross-fade": [evenly] * len(faded)}
        out = Path("data/morphs", key)
        with atomic_folder(out) as folder:
            for label, frames in shown.items():
                (folder / FOLDERS[label]).mkdir()
                write_frames(folder / FOLDERS[label], frames)
            (folder / "floor").mkdir()
            write_frames(folder / "floor", to_arrays(base.decode(base.encode(pictures).mean)))
            write_webp(folder / "morph.webp", clip, settings.fps, stops, settings.hold)
            write_mp4(folder / "morph.mp4", clip, settings.fps, stops, settings.hold)
            strip(list(shown.items()), keyframes=stops, columns=13).save(folder / "strip.png")
            facts = {
                "set": spec.set,
                "base": base.digest,
                "keyframes": [
                    {"file_name": name, "text": captions[name], "frame": stop}
                    for name, stop in zip(names, stops, strict=True)
                ],
                "positions": [round(i / between, 9) for i in range(count)],
                "alphas": {
                    label: [[round(alpha, 6) for alpha in segment.tolist()] for segment in segments]
                    for label, segments in alphas.items()
                },
                "inverted_noise_std": {label: round(take.noise_std, 6) for label, take in takes.items()},
                "settings": settings.model_dump(mode="json"),
            }
            (folder / "morph.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        tracker.metric("inverted_noise_std", takes["morph"].noise_std)
        tracker.picture("strip", out / "strip.png")
        tracker.show(out / "strip.png", f"{key}: the morph, the same without adapters, a cross-fade")
        for made_file in ("morph.webp", "morph.mp4", "morph.json"):
            tracker.artifact(out / made_file, "clips")


def recipe_of(settings: MorphSection, base: StableDiffusion) -> Recipe:
    """The engine's recipe from the params."""
    refine = FixedPoint(settings.fixed_point, settings.relaxation, settings.tolerance) if settings.fixed_point else None
    borrowing = None
    if settings.attention and settings.attention_until > 0:
        borrowing = Borrowing(settings.attention, settings.attention_until, settings.attention_source)
    return Recipe(
        steps=settings.steps,
        inversion_steps=settings.inversion_steps,
        fixed_point=refine,
        use_adain=settings.adain,
        borrowing=borrowing,
        guidance=settings.guidance,
        rescale=settings.rescale,
        negative=base.condition([settings.negative])[0] if settings.guidance != 1 else None,
    )


def frames_of(settings: MorphSection) -> int:
    """Frames of a segment, both ends included."""
    return settings.frames if isinstance(settings.pacing, str) else len(settings.pacing)


def one_after_another(segments: Sequence[torch.Tensor], loop: bool) -> torch.Tensor:
    """All frames (N, 3, H, W): a keyframe between two segments once; of a loop, the first not again at the end."""
    joined = torch.cat([part if number == 0 else part[1:] for number, part in enumerate(segments)])
    return joined[:-1] if loop else joined


def corrected(take: Take, way: Sequence[torch.Tensor], settings: MorphSection) -> list[Frame]:
    """The frames of the clips: those of the take, faded from and to the real pictures if asked."""
    parts = [
        with_real_ends(segment, alphas, first, second, settings.correct_ends)
        for segment, alphas, (first, second) in zip(take.segments, take.alphas, pairwise(way), strict=True)
    ]
    return to_arrays(one_after_another(parts, settings.loop))


def draw_latents(base: StableDiffusion, pictures: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) of pictures (B, 3, H, W): one draw from each posterior, always the same for a picture.

    Not the mean: the base was trained on draws, and means lie where it has seen nothing, so that inverting them gives
    noise that is too small.
    """
    posterior = base.encode(pictures)
    drawn = []
    for picture, mean, std in zip(pictures, posterior.mean, posterior.std, strict=True):
        generator = torch.Generator().manual_seed(keyed_seed(hashlib.sha256(picture.numpy().tobytes()).hexdigest()))
        drawn.append(Posterior(mean[None], std[None]).sample(generator))
    return torch.cat(drawn)


def run_through(
    base: StableDiffusion,
    keyframes: Sequence[Keyframe],
    settings: MorphSection,
    recipe: Recipe,
    batch: int | None,
    label: str,
) -> Take:
    """All segments in a row; of a loop, the one back to the start too. Keyframes are inverted once each."""
    noise = invert_keyframes(base, keyframes, recipe, batch, partial(_bar, label))
    places = [*range(len(keyframes)), 0] if settings.loop else list(range(len(keyframes)))
    take = Take([], [], float(noise.std(dim=(1, 2, 3)).mean()))
    for number, (one, other) in enumerate(pairwise(places)):
        bars = partial(_bar, f"{label} {number + 1}/{len(places) - 1}")
        ends = keyframes[one], keyframes[other]
        alphas = alphas_of(base, ends, noise[[one, other]], settings, recipe, batch, bars)
        latents = morph_segment(base, *ends, noise[[one, other]], alphas, recipe, batch, bars)
        # One by one, so that the device never holds more than one picture.
        take.segments.append(torch.cat([base.decode(frame[None]).cpu() for frame in latents]))
        take.alphas.append(alphas)
    return take


def alphas_of(
    base: StableDiffusion,
    ends: tuple[Keyframe, Keyframe],
    noise: torch.Tensor,
    settings: MorphSection,
    recipe: Recipe,
    batch: int | None,
    bars: Bars,
) -> torch.Tensor:
    """Where the frames of a segment lie: as listed, evenly, or so that neighbours look equally far apart."""
    if not isinstance(settings.pacing, str):
        return torch.tensor(settings.pacing, dtype=torch.float64)
    if settings.pacing == "linear":
        return even(settings.frames)

    def distances(latents: torch.Tensor) -> torch.Tensor:
        pictures = base.decode(latents)
        return perceptual(pictures[:-1], pictures[1:])

    coarse = replace(recipe, steps=settings.pacing_steps)
    points = settings.pacing_points
    return paced_alphas(base, *ends, noise, settings.frames, coarse, points, distances, batch, bars)


def _bar(where: str, part: str) -> Progress:
    def progress(steps: Iterable[int]) -> Iterable[int]:
        return tqdm(list(steps), desc=f"{where} {part}", unit="step")

    return progress
