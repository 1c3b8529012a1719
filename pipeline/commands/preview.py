"""`morphline preview KEY`: coarse frames of a morph of params.yaml by the base alone, seconds after the base is open.

For whoever waits for the film: it needs no training, and no result depends on it. The stage `morph` replaces them by
those that its pacing sees.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pipeline.commands.quick import keyframes_of, open_for_morphs
from pipeline.errors import Problem, UserError
from pipeline.film import Film, settings_of
from pipeline.frames.first_looks import FirstLooks
from pipeline.frames.tensors import to_arrays
from pipeline.params import load_params
from pipeline.pictures.metadata import METADATA, leaves_folder, link_fault, stream_rows

STEPS = 6
"""Of inversion and of sampling, at most."""
FRAMES, FRAMES_OF_MANY, MANY = 5, 3, 4
"""Of a segment, both keyframes included, and of each where there are MANY segments or more."""


def run(key: str) -> Path:
    """Write the frames to `.work/previews/<morph>`, each as soon as it is there.

    Raises:
        UserError: for a key that params.yaml does not have, pictures that cannot be read, and a base that cannot be
            opened.
    """
    params = load_params()
    spec = params.get_morph(key)
    raw, prepare = Path("data/raw", spec.set), params.get_set(spec.set).prepare
    rows = {row.file_name: row for row in stream_rows(raw) if row.file_name in spec.keyframes}
    if missing := [name for name in spec.keyframes if name not in rows]:
        fix = f"Choose from the `file_name`s of {raw / METADATA}."
        raise UserError(
            *(Problem(f"params.yaml: morphs.{key}.keyframes", f"no row for {name!r}", fix) for name in missing)
        )
    if leaving := [name for name in spec.keyframes if leaves_folder(raw, name)]:
        raise UserError(*(Problem(str(raw / METADATA), *link_fault(name)) for name in leaving))
    keyframes = keyframes_of([raw / name for name in spec.keyframes], [rows[name] for name in spec.keyframes], prepare)
    base = open_for_morphs(params)
    settings = settings_of(spec.morph)
    many = len(keyframes) - 1 + settings.loop >= MANY
    recipe = replace(
        settings.recipe,
        steps=min(settings.recipe.steps, STEPS),
        inversion_steps=min(settings.recipe.inversion_steps, STEPS),
    )
    coarse = replace(settings, recipe=recipe, frames=FRAMES_OF_MANY if many else FRAMES, pacing="linear")
    looks = FirstLooks(key)
    for frame in Film(base, keyframes, coarse, batch=params.machine.batch, progress=_bar):
        looks(frame.segment, frame.alpha, to_arrays(frame.picture[None])[0])
    return looks.folder


def _bar(part: str) -> partial[Iterable[int]]:
    return partial(tqdm, desc=f"first look, {part}", unit="step")
