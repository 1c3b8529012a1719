"""Stage `morph@<morph>`: frames between keyframes, with adapters, without them, and the cross-fade."""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline.adapted_base import open_adapted_base
from pipeline.adapters.lora import read_adapter
from pipeline.adapters.mixing import Adapter
from pipeline.adapters.store import ADAPTERS, INDEX, find_adapter, read_index
from pipeline.base.device import choose_device, precision_of
from pipeline.base.protocol import Base
from pipeline.film import Film, FilmSettings, Keyframe, settings_of, with_style
from pipeline.frames.cache import FrameCache, Made
from pipeline.frames.clips import write_frames, write_mp4, write_webp
from pipeline.frames.first_looks import FirstLooks
from pipeline.frames.prepared import prepared_name, read_captions
from pipeline.frames.real_ends import RealEnds
from pipeline.frames.sheets import strip
from pipeline.frames.tensors import Frame, FrameFiles, read_pictures, to_arrays
from pipeline.frames.variants import CROSS_FADE, MORPH, WITHOUT_ADAPTERS, Variant
from pipeline.morphing.engine import cross_fade
from pipeline.morphing.pacing import even_alphas
from pipeline.outputs import atomic_folder, reading, require_output
from pipeline.params import NONE, load_params
from pipeline.processes.chunks import decided
from pipeline.processes.joining import all_processes
from pipeline.sampling.solver import Progress
from pipeline.sections import MorphSection
from pipeline.tracking import Tracker, track
from pipeline.training.code_digest import code_digest

OF_CLIPS = ("fps", "hold", "correct_ends", "without_adapters")
OF_STYLES = ("style_from", "style_to")
BASELINES = Path(".work/baselines")
FRAMES = ("film.py", "base/*.py", "sampling/*.py", "morphing/*.py", "distances/*.py", "processes/*.py",
          "adapters/mixing.py", "frames/tensors.py", "stages/morph.py")  # fmt: skip


def run(key: str) -> None:
    """Write data/morphs/<morph>/: frames, the baselines, the autoencoder's floor, clips, strip and morph.json.

    With as many processes as there are to use; the first writes.
    """
    params = load_params()
    accelerator = all_processes(["frames", key], params.machine.processes, choose_device(params.machine.device))
    spec = params.get_morph(key)
    settings = spec.morph
    prepared = require_output(Path("data/prepared", spec.set), f"prepare@{spec.set}")
    adapters = require_output(Path("models/adapters", spec.set), f"train@{spec.set}")
    section = {"base": params.base.model_dump(), **spec.model_dump()}
    tracked: AbstractContextManager[Tracker | None] = nullcontext()
    if accelerator.is_main_process:
        datasets = {spec.set: prepared}
        tracked = track(f"morph@{key}", params.tracking, section, datasets=datasets, tags=params.base.tags())
    with tracked as tracker:
        base = open_adapted_base(params.base, accelerator.device)
        names = [prepared_name(name) for name in spec.keyframes]
        keyframes = read_keyframes(base, prepared, adapters, names)
        if spec.style != NONE:
            keyframes = with_style(keyframes, read_style(spec.style, base), settings)
        pictures = torch.stack([keyframe.picture for keyframe in keyframes])
        film_settings = settings_of(settings)
        variants = (MORPH, WITHOUT_ADAPTERS) if settings.without_adapters else (MORPH,)

        def film_of(variant: Variant) -> Film:
            own = (
                keyframes if variant == MORPH else [replace(keyframe, adapters=(), style=()) for keyframe in keyframes]
            )
            bars = partial(_bar, variant.label, tracker is None)
            batch = params.machine.batch
            film = partial(Film, base, own, film_settings, batch=batch, progress=bars, accelerator=accelerator)
            if tracker is None or variant != MORPH:
                return film()
            looks = FirstLooks(key)
            return film(on_look=lambda segment, alpha, seen: looks(segment, alpha, to_arrays(seen[None])[0]))

        cache = FrameCache(BASELINES)
        digest = baseline_digest(base, keyframes, settings, params.machine.batch, accelerator.num_processes)
        reuse = WITHOUT_ADAPTERS in variants and params.machine.reuse
        known = decided(lambda: reuse and cache.has(digest), accelerator)
        if tracker is None:
            for variant in variants:
                if variant == MORPH or not known:
                    deque(film_of(variant), maxlen=0)
            return
        between = film_settings.frames_per_segment - 1
        stops = [index * between for index in range(len(names))]
        count = len(names) * between if settings.loop else stops[-1] + 1
        alphas: dict[Variant, list[list[float]]] = {}
        noise_std: dict[str, float] = {}
        out = Path("data/morphs", key)
        with atomic_folder(out) as folder:
            for variant in variants:
                if known and variant == WITHOUT_ADAPTERS:
                    made = cache.copy(digest, folder / variant.folder)
                else:
                    made = make_frames(film_of(variant), folder / variant.folder, count)
                    if variant == WITHOUT_ADAPTERS and reuse:
                        cache.add(digest, folder / variant.folder, made)
                alphas[variant], noise_std[variant.label] = made.alphas, made.noise_std
            (folder / CROSS_FADE.folder).mkdir()
            write_frames(folder / CROSS_FADE.folder, faded(pictures, film_settings), count)
            alphas[CROSS_FADE] = [even_alphas(between + 1).tolist()] * len(alphas[MORPH])
            (folder / "floor").mkdir()
            floor = (to_arrays(base.decode(base.encode(picture[None]).mean))[0] for picture in pictures)
            write_frames(folder / "floor", floor, len(pictures))
            written = {variant: FrameFiles(sorted((folder / variant.folder).iterdir())) for variant in alphas}
            clip = clip_frames(written[MORPH], pictures, stops, rounded(alphas[MORPH]), settings)
            write_webp(folder / "morph.webp", clip, settings.fps, stops, settings.hold)
            write_mp4(folder / "morph.mp4", clip, settings.fps, stops, settings.hold)
            rows = [(variant.label, frames) for variant, frames in written.items()]
            strip(rows, keyframes=stops, columns=13).save(folder / "strip.png")
            facts = {
                "set": spec.set,
                "style": spec.style,
                "base": base.digest,
                "keyframes": [
                    {"file_name": name, "text": keyframe.caption, "frame": stop}
                    for name, keyframe, stop in zip(names, keyframes, stops, strict=True)
                ],
                "positions": [round(number / between, 9) for number in range(count)],
                "alphas": {variant.label: rounded(segments) for variant, segments in alphas.items()},
                "inverted_noise_std": noise_std,
                "settings": settings.model_dump(mode="json"),
            }
            (folder / "morph.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        tracker.metric("inverted_noise_std", noise_std[MORPH.label])
        tracker.picture("strip", out / "strip.png")
        tracker.show(out / "strip.png", f"{key}: " + ", ".join(variant.label for variant in alphas))
        for name in ("morph.webp", "morph.mp4", "morph.json"):
            tracker.artifact(out / name, "clips")


def make_frames(film: Film, folder: Path, count: int) -> Made:
    """Write the `count` frames of a film into a new folder."""
    folder.mkdir()
    write_frames(folder, (to_arrays(frame.picture[None])[0] for frame in film), count)
    return Made([segment.tolist() for segment in film.alphas], round(film.noise_std, 6))


def baseline_digest(
    base: Base, keyframes: Sequence[Keyframe], settings: MorphSection, batch: int | None, processes: int
) -> str:
    """What frames without adapters depend on, to the bit: the device, batches, processes and threads, too."""
    inputs = {
        "code": code_digest(FRAMES),
        "base": [base.digest, precision_of(base.dtype), str(base.device)],
        "machine": [batch, processes, torch.get_num_threads()],
        "keyframes": [[hashlib.sha256(k.picture.numpy().tobytes()).hexdigest(), k.caption] for k in keyframes],
        "size": list(keyframes[0].picture.shape),
        "settings": settings.model_dump(mode="json", exclude={*OF_CLIPS, *OF_STYLES}),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]


def read_keyframes(base: Base, prepared: Path, adapters: Path, names: list[str]) -> list[Keyframe]:
    """Prepared pictures with their captions and adapters, each at weight 1. A shared adapter is loaded once."""
    captions, files = read_captions(prepared), read_index(adapters)
    with reading(prepared / "metadata.jsonl"):
        texts = [captions[name] for name in names]
    with reading(adapters / INDEX):
        own = [files[name] for name in names]
    loaded = {file: read_adapter(adapters / file, base.digest, base.device, base) for file in set(own)}
    pictures = read_pictures(prepared / name for name in names)
    return [
        Keyframe(picture, text, ((loaded[file], 1.0),))
        for picture, text, file in zip(pictures, texts, own, strict=True)
    ]


def read_style(key: str, base: Base) -> Adapter:
    """The adapter of a set that has one for all."""
    require_output(ADAPTERS / key, f"train@{key}")
    return read_adapter(find_adapter(key), base.digest, base.device, base)


def faded(pictures: torch.Tensor, settings: FilmSettings) -> Iterator[Frame]:
    """The cross-fade through pictures (K, 3, H, W), evenly paced."""
    way = torch.cat([pictures, pictures[:1]]) if settings.loop else pictures
    for segment, (first, second) in enumerate(pairwise(way)):
        inner = even_alphas(settings.frames_per_segment).tolist()
        for alpha in inner[: -1 if settings.loop and segment == len(way) - 2 else None][1 if segment else 0 :]:
            yield to_arrays(cross_fade(first, second, [alpha]))[0]


def clip_frames(
    frames: Sequence[Frame],
    pictures: torch.Tensor,
    stops: list[int],
    alphas: list[list[float]],
    settings: MorphSection,
) -> Sequence[Frame]:
    """The frames of the clips: the generated ones, faded from and to the real pictures if asked."""
    return RealEnds(frames, pictures, stops, alphas, settings.correct_ends) if settings.correct_ends else frames


def rounded(alphas: list[list[float]]) -> list[list[float]]:
    """Alphas by segment as morph.json keeps them."""
    return [[round(alpha, 6) for alpha in segment] for segment in alphas]


def _bar(variant: str, silent: bool, part: str) -> Progress:
    def progress(steps: Iterable[Any]) -> Iterable[Any]:
        return tqdm(list(steps), desc=f"{variant} {part}", unit="step", disable=silent)

    return progress
