"""`morphline morph a.jpg b.jpg`: from a few pictures to a clip in one command, through the same tracked pipeline."""

import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from pipeline.commands import add, clip
from pipeline.errors import Problem, UserError
from pipeline.inputs import open_plain
from pipeline.params import load_params


def run(
    pictures: Sequence[Path],
    captions: Sequence[str],
    out: Path,
    *,
    fps: float | None = None,
    hold: float | None = None,
    size: int | None = None,
    force: bool = False,
) -> Path:
    """Add the pictures as a set and a morph (unless they were added before), run the pipeline, and write the clip.

    Raises:
        UserError: for pictures or captions that `morphline add` refuses, a clip that `morphline clip` would not write,
            and a pipeline that failed, which has printed why.
    """
    clip.check_output(out, fps, hold, size, force)
    if problems := add.pipe_problems(add.RAW):
        raise UserError(*problems)
    key, known = find_key(pictures, captions)
    if not known:
        add.run(key, pictures, captions)
    code = subprocess.call([sys.executable, "-m", "dvc", "repro", f"morph@{key}"])
    if code:
        fix = f"Fix the problem that it printed above, then run `dvc repro morph@{key}` or the same command again."
        raise UserError(Problem(f"dvc repro morph@{key}", f"it failed (exit code {code})", fix))
    return clip.run(key, out, fps=fps, hold=hold, size=size, force=force)


def find_key(pictures: Sequence[Path], captions: Sequence[str]) -> tuple[str, bool]:
    """A key from the pictures' names, and whether the same pictures and captions were added under it before."""
    stem = "-".join(slugify(picture.stem) for picture in pictures)[:60].strip("-") or "morph"
    params = load_params()
    for number in count(1):
        key = stem if number == 1 else f"{stem}-{number}"
        folder = add.RAW / key
        if key not in params.sets and key not in params.morphs and not folder.exists():
            return key, False
        if key in params.morphs and _was_added(folder, pictures, captions):
            return key, True
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
        return texts == [caption.strip() for caption in captions] and contents == [_content(p) for p in pictures]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # another set, or one that was changed: `find_key` tries another name


def _content(path: Path) -> bytes:
    with open_plain(path) as file:
        return file.read()
