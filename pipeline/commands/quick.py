"""`morphline morph a.jpg b.jpg --quick`: a first look by the base alone. Nothing is trained, tracked or kept."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pipeline.adapted_base import open_adapted_base
from pipeline.base.device import choose_device
from pipeline.base.protocol import Base
from pipeline.commands import add, clip
from pipeline.commands.morph import morph_settings, params_for
from pipeline.errors import Problem, UserError
from pipeline.film import Film, Keyframe, settings_of
from pipeline.frames.real_ends import RealEnds
from pipeline.frames.tensors import from_arrays, to_arrays
from pipeline.overrides import overridden
from pipeline.params import Params
from pipeline.pictures.captions import require_short
from pipeline.pictures.preparing import prepare_picture
from pipeline.pictures.rows import Row
from pipeline.sections import PrepareSection

SAID = "quick: without training. The same without --quick trains an adapter for each picture, and keeps what it made."


def run(
    pictures: Sequence[Path],
    captions: Sequence[str],
    out: Path,
    *,
    extras: add.Extras | None = None,
    frames: int | None = None,
    steps: int | None = None,
    fps: float | None = None,
    hold: float | None = None,
    size: int | None = None,
    force: bool = False,
) -> Path:
    """Morph pictures without adapters and write the clip; params.yaml says how, and is not changed.

    Raises:
        UserError: for mistakes in the command, pictures that cannot be read, and a base that cannot be opened.
    """
    extras = extras or add.Extras()
    if extras.of_section("train") or extras.of_section("sample"):
        raise UserError(
            Problem("--set", "with --quick nothing is trained", "Leave out what is of `train` and `sample`.")
        )
    clip.check_output(out, fps, hold, size, force)
    params = params_for(pictures, captions, extras)
    texts, focuses = add.one_for_each(pictures, captions), add.focus_for_each(pictures, extras.focuses)
    values = morph_settings(params, pictures, frames, steps, extras.of_section("morph"))
    section = overridden(params.morph, "morph", values)
    fps, hold = section.fps if fps is None else fps, section.hold if hold is None else hold
    clip.require_rate(out, fps)
    size_and_crop = overridden(params.prepare, "prepare", extras.of_section("prepare"))
    rows = [
        Row(file_name=path.name, text=text, focus=(focus[0], focus[1]) if focus else None)
        for path, text, focus in zip(pictures, texts, focuses, strict=True)
    ]
    if (batch := params.machine.batch) is not None and batch < section.least_batch:
        found = f"{batch} is too few for a frame of this morph"
        raise UserError(Problem("params.yaml: machine.batch", found, f"Write at least {section.least_batch}, or null."))
    keyframes = keyframes_of(pictures, rows, size_and_crop)
    base = open_for_morphs(params)
    named = [*zip(map(str, pictures), texts, strict=True), ("params.yaml: morph.negative", section.negative)]
    require_short(named, base.caption_length)
    film = Film(base, keyframes, settings_of(section), batch=params.machine.batch, progress=_bar)
    made: Sequence[np.ndarray] = [to_arrays(frame.picture[None])[0] for frame in film]
    stops = [number * (film.settings.frames_per_segment - 1) for number in range(len(pictures))]
    if section.correct_ends:
        real = torch.stack([keyframe.picture for keyframe in keyframes])
        made = RealEnds(made, real, stops, [alphas.tolist() for alphas in film.alphas], section.correct_ends)
    tqdm.write(SAID)
    return clip.write(out, made, stops, fps=fps, hold=hold, size=size)


def keyframes_of(pictures: Sequence[Path], rows: Sequence[Row], settings: PrepareSection) -> list[Keyframe]:
    """Raw pictures as keyframes without adapters.

    Raises:
        UserError: for the first that cannot be read.
    """
    prepared = [np.array(prepare_picture(path, row, settings)[0]) for path, row in zip(pictures, rows, strict=True)]
    return [Keyframe(picture, row.text) for picture, row in zip(from_arrays(prepared), rows, strict=True)]


def open_for_morphs(params: Params) -> Base:
    """The base of params.yaml.

    Raises:
        UserError: where it cannot be opened, or makes no morphs.
    """
    base = open_adapted_base(params.base, choose_device(params.machine.device))
    if base.inpaints:
        found = "a base made for inpainting, which makes no morphs"
        raise UserError(Problem("params.yaml: base.source", found, "Use an ordinary base."))
    return base


def _bar(part: str) -> partial[Iterable[int]]:
    return partial(tqdm, desc=part, unit="step")
