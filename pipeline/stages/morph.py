"""Stage `morph@<morph>`: frames between keyframes, with adapters, without them, and the cross-fade."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.adapters.lora import keyed_seed, load_adapter
from pipeline.adapters.store import read_index
from pipeline.base.device import choose_device
from pipeline.base.opening import open_base
from pipeline.base.stable_diffusion import Posterior, StableDiffusion
from pipeline.images.clips import write_frames, write_mp4, write_webp
from pipeline.images.metadata import prepared_name, read_rows
from pipeline.images.sheets import strip
from pipeline.images.tensors import read_pictures, to_arrays
from pipeline.morphing.ddim import Progress
from pipeline.morphing.engine import Keyframe, cross_fade, morph_segment
from pipeline.outputs import made, whole_folder
from pipeline.params import MorphSection, load_params
from pipeline.tracking import track

FOLDERS = {"morph": "frames", "without adapters": "no-lora", "cross-fade": "cross-fade"}


@dataclass(frozen=True)
class Take:
    """One way through all keyframes: decoded frames, and the mean std of the inverted noise (1 is ideal)."""

    frames: list[NDArray[np.uint8]]
    noise_std: float


def run(key: str) -> None:
    """Write data/morphs/<morph>/: frames, the two baselines, the autoencoder's floor, clips, strip and morph.json."""
    params = load_params()
    spec = params.the_morph(key)
    settings = spec.morph
    prepared = made(Path("data/prepared", spec.set), f"prepare@{spec.set}")
    adapters = made(Path("models/adapters", spec.set), f"train@{spec.set}")
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
        files = read_index(adapters)
        # Modules of a UNet must not have dots in their names; pictures may.
        loaded = {file: f"keyframe{i}" for i, file in enumerate(dict.fromkeys(files[name] for name in names))}
        for file, adapter in loaded.items():
            load_adapter(base.unet, adapters / file, adapter, base.digest)

        takes = {}
        for label, with_adapters in (("morph", True), ("without adapters", False)):
            keyframes = [
                Keyframe(latents[i], conditioning[i], loaded[files[name]] if with_adapters else None)
                for i, name in enumerate(names)
            ]
            takes[label] = run_through(base, keyframes, settings, params.machine.batch, label)
        alphas = segment_alphas(settings.frames).tolist()
        faded = [cross_fade(a, b, alphas) for a, b in zip(pictures, pictures[1:], strict=False)]
        shown = {label: take.frames for label, take in takes.items()}
        shown["cross-fade"] = to_arrays(torch.cat([part if i == 0 else part[1:] for i, part in enumerate(faded)]))

        stops = [index * (settings.frames - 1) for index in range(len(names))]
        out = Path("data/morphs", key)
        with whole_folder(out) as folder:
            for label, frames in shown.items():
                (folder / FOLDERS[label]).mkdir()
                write_frames(folder / FOLDERS[label], frames)
            (folder / "floor").mkdir()
            write_frames(folder / "floor", to_arrays(base.decode(base.encode(pictures).mean)))
            write_webp(folder / "morph.webp", shown["morph"], settings.fps, stops, settings.hold)
            write_mp4(folder / "morph.mp4", shown["morph"], settings.fps, stops, settings.hold)
            strip(list(shown.items()), keyframes=stops, columns=13).save(folder / "strip.png")
            facts = {
                "set": spec.set,
                "base": base.digest,
                "keyframes": [
                    {"file_name": name, "text": captions[name], "frame": stop}
                    for name, stop in zip(names, stops, strict=True)
                ],
                "positions": [round(i / (settings.frames - 1), 9) for i in range(stops[-1] + 1)],
                "inverted_noise_std": {label: round(take.noise_std, 6) for label, take in takes.items()},
                "settings": settings.model_dump(),
            }
            (folder / "morph.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        tracker.metric("inverted_noise_std", takes["morph"].noise_std)
        tracker.picture("strip", out / "strip.png")
        for clip in ("morph.webp", "morph.mp4", "morph.json"):
            tracker.artifact(out / clip, "clips")


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


def segment_alphas(frames: int) -> torch.Tensor:
    """Evenly spaced alphas of one segment, both ends included, (frames,)."""
    return torch.linspace(0, 1, frames)


def run_through(
    base: StableDiffusion, keyframes: Sequence[Keyframe], settings: MorphSection, batch: int | None, label: str
) -> Take:
    """All segments in a row; a keyframe between two of them appears once."""
    frames, stds = [], []
    for number, (first, second) in enumerate(zip(keyframes, keyframes[1:], strict=False)):
        where = f"{label} {number + 1}/{len(keyframes) - 1}"
        segment = morph_segment(
            base,
            first,
            second,
            segment_alphas(settings.frames),
            steps=settings.steps,
            use_adain=settings.adain,
            batch=batch,
            progress=partial(_bar, where),
        )
        decoded = to_arrays(base.decode(segment.latents))
        frames += decoded if number == 0 else decoded[1:]
        stds.append(float(segment.noise.std()))
    return Take(frames, sum(stds) / len(stds))


def _bar(where: str, part: str) -> Progress:
    def progress(steps: Iterable[int]) -> Iterable[int]:
        return tqdm(list(steps), desc=f"{where} {part}", unit="step")

    return progress
