"""`morphline morph a.jpg b.jpg`: from a few pictures to a clip in one command, through the same tracked pipeline."""

import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from pipeline.commands import add, clip
from pipeline.errors import Problem, UserError
from pipeline.inputs import open_plain
from pipeline.params import Params, load_params

FRAMES = 31
"""Of two pictures, at least: with fewer the clip would be over in two seconds."""


def run(
    pictures: Sequence[Path],
    captions: Sequence[str],
    out: Path,
    *,
    frames: int | None = None,
    steps: int | None = None,
    fps: float | None = None,
    hold: float | None = None,
    size: int | None = None,
    force: bool = False,
) -> Path:
    """Add the pictures as a set and a morph (unless they were added before), run the pipeline, and write the clip.

    captions: one for each picture, one for all, or none. frames, steps: see `morph_settings`.

    Raises:
        UserError: for pictures or captions that `morphline add` refuses, a clip that `morphline clip` would not write,
            and a pipeline that failed, which has printed why.
    """
    clip.check_output(out, fps, hold, size, force)
    params = params_for(pictures, captions)
    overrides = morph_settings(params, pictures, frames, steps)
    place = find_place(params, pictures, add.one_for_each(pictures, captions), overrides)
    if place.of is None:
        add.run(place.key, pictures, captions, overrides)
    elif not place.known:
        add.add_morph(place.key, place.of, pictures, overrides)
    code = subprocess.call([sys.executable, "-m", "dvc", "repro", f"morph@{place.key}"])
    if code:
        fix = (
            f"Fix the problem that it printed above, then run `dvc repro morph@{place.key}` or the same command again."
        )
        raise UserError(Problem(f"dvc repro morph@{place.key}", f"it failed (exit code {code})", fix))
    return clip.run(place.key, out, fps=fps, hold=hold, size=size, force=force)


def params_for(pictures: Sequence[Path], captions: Sequence[str]) -> Params:
    """The params, for pictures and captions in which there is no mistake.

    Raises:
        UserError: with every mistake; who gives the key of a morph for a picture is told what to run instead.
    """
    params = load_params()
    keys = [str(path) for path in pictures if str(path) in params.morphs and not path.exists()]
    fix = "`dvc repro morph@{0}` makes it, `morphline clip {0} --out {0}.mp4` writes its clip anew."
    problems = [Problem(key, "this is a morph of params.yaml, not a picture", fix.format(key)) for key in keys]
    if problems := problems or add.find_mistakes(pictures, captions):
        raise UserError(*problems)
    return params


def morph_settings(
    params: Params, pictures: Sequence[Path], frames: int | None, steps: int | None
) -> dict[str, object]:
    """What a morph through the pictures overrides of the section `morph`.

    frames: of each segment, both keyframes included; None: as in params.yaml, but for two pictures FRAMES at least.
    steps: of inversion and of sampling; None: as in params.yaml.
    """
    if frames is None and len(pictures) == 2 and params.morph.frames < FRAMES:
        frames = FRAMES
    given = {"frames": frames, "steps": steps, "inversion_steps": steps}
    return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Place:
    """Where a morph is, or is to be. of: the set that has its pictures; None: there is none. known: it is there."""

    key: str
    of: str | None
    known: bool


def find_place(
    params: Params, pictures: Sequence[Path], captions: Sequence[str], overrides: Mapping[str, object]
) -> Place:
    """A key from the pictures' names, and what was added before of the same pictures, captions and settings."""
    stem = "-".join(slugify(picture.stem) for picture in pictures)[:60].strip("-") or "morph"
    settings = params.morph.model_copy(update=dict(overrides))
    of: str | None = None
    for number in count(1):
        key = stem if number == 1 else f"{stem}-{number}"
        spec = params.morphs.get(key)
        if spec and spec.morph == settings and _was_added(add.RAW / spec.set, pictures, captions):
            return Place(key, spec.set, known=True)
        if of is None and key in params.sets and _was_added(add.RAW / key, pictures, captions):
            of = key
        if key not in params.sets and spec is None and not (add.RAW / key).exists():
            return Place(key, of, known=False)
    raise AssertionError("unreachable: there are always more numbers")


def slugify(text: str) -> str:
    """Lower-case letters, digits and single hyphens: "Großer See (2)" gives "grosser-see-2"."""
    ascii_text = unicodedata.normalize("NFKD", text.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")


def _was_added(folder: Path, pictures: Sequence[Path], captions: Sequence[str]) -> bool:
    try:
        lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        texts = [row["text"] for row in rows]
        contents = [_content(folder / row["file_name"]) for row in rows]
        return texts == list(captions) and contents == [_content(picture) for picture in pictures]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # another set, or one that was changed: `find_place` tries another name


def _content(path: Path) -> bytes:
    with open_plain(path) as file:
        return file.read()
