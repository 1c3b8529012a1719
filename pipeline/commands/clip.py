"""`morphline clip`: a finished morph as another clip, in another kind, pace or size, without making it anew."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import Problem, UserError
from pipeline.frames.clips import write_frames, write_gif, write_mp4, write_webp
from pipeline.frames.tensors import Frame, from_arrays, read_arrays, read_pictures, resized, to_arrays
from pipeline.morphing.interpolation import with_real_ends
from pipeline.outputs import atomic_file, atomic_folder, require_output
from pipeline.params import load_params

KINDS = (".mp4", ".webp", ".gif")
GIF_FPS = 50
"""Players show faster GIFs at a tenth of that."""
SIDES = range(16, 8193)


def run(
    key: str,
    out: Path,
    *,
    fps: float | None = None,
    hold: float | None = None,
    size: int | None = None,
    force: bool = False,
) -> Path:
    """Write a morph's frames as a clip, or, where `out` has no suffix, as a folder of PNGs.

    fps: frames a second; hold: seconds that it rests on each keyframe; size: its longer side in pixels. None: as the
    morph's own.

    Raises:
        UserError: for a morph that is unknown or not made, and for what `check_out` refuses.
    """
    spec = load_params().get_morph(key)
    check_out(out, fps, hold, size, force)
    folder = require_output(Path("data/morphs", key), f"morph@{key}")
    facts = json.loads((folder / "morph.json").read_text(encoding="utf-8"))
    settings = facts["settings"]
    frames = _frames(folder, Path("data/prepared", spec.set), facts)
    if size:
        frames = [resized(frame, size) for frame in frames]
    if not out.suffix:
        with atomic_folder(out) as partial:
            write_frames(partial, frames)
        return out
    pace = settings["fps"] if fps is None else fps
    rest = settings["hold"] if hold is None else hold
    stops = [keyframe["frame"] for keyframe in facts["keyframes"]]
    kind = out.suffix.lower()
    if kind == ".gif" and pace > GIF_FPS:
        fix = f"Say --fps {GIF_FPS} or less, or write an .mp4 or .webp."
        raise UserError(Problem("--fps", f"GIFs play at most {GIF_FPS} frames a second, found {pace:g}", fix))
    with atomic_file(out) as partial:
        if kind == ".mp4":
            write_mp4(partial, frames, pace, stops, rest, enlarge=size is None)
        else:
            write = write_webp if kind == ".webp" else write_gif
            write(partial, frames, pace, stops, rest)
    return out


def check_out(out: Path, fps: float | None, hold: float | None, size: int | None, force: bool) -> None:
    """Refuse a clip that could not be written as asked, or that would replace a file without `force`.

    Raises:
        UserError: with every problem.
    """
    problems = []
    if out.suffix and out.suffix.lower() not in KINDS:
        fix = f"Name a file that ends in {', '.join(KINDS)}, or a folder for PNGs, with no dot in its name."
        problems.append(Problem("--out", f"found {str(out)!r}", fix))
    elif out.exists() and (not force or out.is_dir() == bool(out.suffix)):
        fix = "Name another, or say --force." if out.is_dir() != bool(out.suffix) else "Name another."
        problems.append(Problem("--out", f"{out} is there already", fix))
    elif out.is_dir() and any(path.suffix != ".png" or not path.is_file() for path in out.iterdir()):
        problems.append(Problem("--out", f"{out} holds more than PNGs, which would be lost", "Name another folder."))
    if fps is not None and not 0 < fps <= 120:
        problems.append(Problem("--fps", f"found {fps:g}", "Write a number above 0, up to 120."))
    if hold is not None and not 0 <= hold <= 60:
        problems.append(Problem("--hold", f"found {hold:g}", "Write seconds, 0 to 60."))
    if size is not None and size not in SIDES:
        problems.append(Problem("--size", f"found {size}", f"Write pixels, {SIDES[0]} to {SIDES[-1]}."))
    if problems:
        raise UserError(*problems)


def _frames(folder: Path, prepared: Path, facts: dict[str, Any]) -> list[Frame]:
    """The frames of the morph's clips: those it made, with real ends where its settings ask for them."""
    frames = read_arrays(sorted((folder / "frames").glob("*.png")))
    settings = facts["settings"]
    if settings["correct_ends"] == 0:
        return frames
    real = read_pictures(prepared / keyframe["file_name"] for keyframe in facts["keyframes"])
    stops = [keyframe["frame"] for keyframe in facts["keyframes"]]
    if settings["loop"]:
        frames, real, stops = [*frames, frames[0]], torch.cat([real, real[:1]]), [*stops, len(frames)]
    shown = frames[:1]
    for (start, end), ends, alphas in zip(pairwise(stops), pairwise(real), facts["alphas"]["morph"], strict=True):
        segment = from_arrays(frames[start : end + 1])
        fixed = to_arrays(with_real_ends(segment, torch.tensor(alphas), *ends, settings["correct_ends"]))
        shown = [*shown[:-1], *fixed]
    return shown[:-1] if settings["loop"] else shown
