"""Stage `morph@<morph>`: frames between keyframes, with adapters, without them, and the cross-fade."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline.adapters.lora import read_adapter
from pipeline.adapters.store import read_index
from pipeline.base.device import choose_device
from pipeline.base.opening import open_base
from pipeline.base.protocol import Base
from pipeline.film import Film, FilmSettings, Keyframe
from pipeline.frames.clips import write_frames, write_mp4, write_webp
from pipeline.frames.prepared import prepared_name, read_captions
from pipeline.frames.sheets import strip
from pipeline.frames.tensors import Frame, from_arrays, read_pictures, to_arrays
from pipeline.frames.variants import CROSS_FADE, MORPH, WITHOUT_ADAPTERS, Variant
from pipeline.morphing.diffmorpher import KeyframeAttention
from pipeline.morphing.engine import Recipe, cross_fade
from pipeline.morphing.interpolation import film_with_real_ends
from pipeline.morphing.pacing import even_alphas
from pipeline.outputs import atomic_folder, require_output
from pipeline.params import MorphSection, load_params
from pipeline.sampling.solver import Progress
from pipeline.tracking import track


@dataclass(frozen=True)
class VariantFrames:
    """One variant of the morph: its frames, and the alphas of each segment."""

    frames: list[Frame]
    alphas: list[torch.Tensor]


def run(key: str) -> None:
    """Write data/morphs/<morph>/: frames, the baselines, the autoencoder's floor, clips, strip and morph.json."""
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
        names = [prepared_name(name) for name in spec.keyframes]
        keyframes = read_keyframes(base, prepared, adapters, names)
        pictures = torch.stack([keyframe.picture for keyframe in keyframes])
        film_settings = settings_of(settings, base)

        variants: dict[Variant, VariantFrames] = {}
        noise_std: dict[str, float] = {}
        for variant in (MORPH, WITHOUT_ADAPTERS) if settings.without_adapters else (MORPH,):
            own = keyframes if variant == MORPH else [replace(keyframe, adapters=()) for keyframe in keyframes]
            film = Film(base, own, film_settings, batch=params.machine.batch, progress=partial(_bar, variant.label))
            frames = [frame for made in film for frame in to_arrays(made.picture[None])]
            variants[variant] = VariantFrames(frames, film.alphas)
            noise_std[variant.label] = round(film.noise_std, 6)
        variants[CROSS_FADE] = faded(pictures, film_settings)

        between = film_settings.frames_per_segment - 1
        stops = [index * between for index in range(len(names))]
        out = Path("data/morphs", key)
        with atomic_folder(out) as folder:
            for variant, made in variants.items():
                (folder / variant.folder).mkdir()
                write_frames(folder / variant.folder, made.frames)
            (folder / "floor").mkdir()
            write_frames(folder / "floor", to_arrays(base.decode(base.encode(pictures).mean)))
            clip = clip_frames(variants[MORPH], pictures, stops, settings)
            write_webp(folder / "morph.webp", clip, settings.fps, stops, settings.hold)
            write_mp4(folder / "morph.mp4", clip, settings.fps, stops, settings.hold)
            rows = [(variant.label, made.frames) for variant, made in variants.items()]
            strip(rows, keyframes=stops, columns=13).save(folder / "strip.png")
            facts = {
                "set": spec.set,
                "base": base.digest,
                "keyframes": [
                    {"file_name": name, "text": keyframe.caption, "frame": stop}
                    for name, keyframe, stop in zip(names, keyframes, stops, strict=True)
                ],
                "positions": [round(number / between, 9) for number in range(len(variants[MORPH].frames))],
                "alphas": {variant.label: rounded(made.alphas) for variant, made in variants.items()},
                "inverted_noise_std": noise_std,
                "settings": settings.model_dump(mode="json"),
            }
            (folder / "morph.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        tracker.metric("inverted_noise_std", noise_std[MORPH.label])
        tracker.picture("strip", out / "strip.png")
        tracker.show(out / "strip.png", f"{key}: " + ", ".join(variant.label for variant in variants))
        for name in ("morph.webp", "morph.mp4", "morph.json"):
            tracker.artifact(out / name, "clips")


def read_keyframes(base: Base, prepared: Path, adapters: Path, names: list[str]) -> list[Keyframe]:
    """Prepared pictures with their captions and adapters, each at weight 1. A shared adapter is loaded once."""
    captions, files = read_captions(prepared), read_index(adapters)
    loaded = {file: read_adapter(adapters / file, base.digest, base.device) for file in {files[name] for name in names}}
    return [
        Keyframe(picture, captions[name], ((loaded[files[name]], 1.0),))
        for name, picture in zip(names, read_pictures(prepared / name for name in names), strict=True)
    ]


def settings_of(settings: MorphSection, base: Base) -> FilmSettings:
    """The film's settings from the params."""
    attention = None
    if settings.attention and settings.attention_until > 0:
        attention = KeyframeAttention(settings.attention, settings.attention_until, settings.attention_source)
    recipe = Recipe(
        steps=settings.steps,
        inversion_steps=settings.inversion_steps,
        solver=settings.solver,
        use_adain=settings.adain,
        attention=attention,
        guidance=settings.guidance,
        rescale=settings.rescale,
        negative=base.condition([settings.negative]) if settings.guidance != 1 else None,
    )
    return FilmSettings(
        recipe=recipe,
        frames=settings.frames,
        pacing=settings.pacing,
        pacing_spare=settings.pacing_spare,
        loop=settings.loop,
    )


def faded(pictures: torch.Tensor, settings: FilmSettings) -> VariantFrames:
    """The cross-fade through pictures (K, 3, H, W), evenly paced."""
    evenly = even_alphas(settings.frames_per_segment)
    way = torch.cat([pictures, pictures[:1]]) if settings.loop else pictures
    segments = [cross_fade(a, b, evenly.tolist()) for a, b in pairwise(way)]
    frames = torch.cat([part if number == 0 else part[1:] for number, part in enumerate(segments)])
    return VariantFrames(to_arrays(frames[:-1] if settings.loop else frames), [evenly] * len(segments))


def clip_frames(made: VariantFrames, pictures: torch.Tensor, stops: list[int], settings: MorphSection) -> list[Frame]:
    """The frames of the clips: the variant's own, faded from and to the real pictures if asked."""
    if settings.correct_ends == 0:
        return made.frames
    alphas = rounded(made.alphas)
    frames = from_arrays(made.frames)
    return to_arrays(film_with_real_ends(frames, pictures, stops, alphas, settings.correct_ends, settings.loop))


def rounded(alphas: list[torch.Tensor]) -> list[list[float]]:
    """Alphas by segment as morph.json keeps them."""
    return [[round(alpha, 6) for alpha in segment.tolist()] for segment in alphas]


def _bar(variant: str, part: str) -> Progress:
    def progress(steps: Iterable[Any]) -> Iterable[Any]:
        return tqdm(list(steps), desc=f"{variant} {part}", unit="step")

    return progress
