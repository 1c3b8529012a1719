"""`morphline clip`: write a finished morph in another format, frame rate or size, without computing it again."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.commands.places import own_problems
from pipeline.errors import Problem, UserError
from pipeline.frames.clips import write_frames, write_gif, write_mp4, write_webp
from pipeline.frames.real_ends import RealEnds
from pipeline.frames.tensors import Frame, FrameFiles, ResizedFrames, read_pictures
from pipeline.frames.variants import frame_paths, read_facts
from pipeline.outputs import atomic_file, atomic_folder, require_output
from pipeline.params import load_params
from pipeline.sections import FASTEST_FPS, SLOWEST_FPS

FORMATS = (".mp4", ".webp", ".gif")
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

    fps: frames a second; hold: seconds for which it shows each keyframe; size: its longer side in pixels. None: the
    morph's own.

    Raises:
        UserError: for a morph that is unknown or not there yet, and for what `check_output` refuses.
    """
    spec = load_params().get_morph(key)
    check_output(out, fps, hold, size, force)
    folder = require_output(Path("data/morphs", key), f"morph@{key}")
    facts = read_facts(folder)
    settings = facts["settings"]
    stops = [keyframe["frame"] for keyframe in facts["keyframes"]]
    fps = settings["fps"] if fps is None else fps
    hold = settings["hold"] if hold is None else hold
    return write(out, _frames(folder, Path("data/prepared", spec.set), facts), stops, fps=fps, hold=hold, size=size)


def write(
    out: Path, frames: Sequence[Frame], stops: Sequence[int], *, fps: float, hold: float, size: int | None
) -> Path:
    """Write frames, of which `stops` are keyframes, as `run` says; `out` has passed `check_output`.

    Raises:
        UserError: for a GIF that players would show at another speed.
    """
    if size:
        frames = ResizedFrames(frames, size)
    if not out.suffix:
        with atomic_folder(out) as partial:
            write_frames(partial, frames, len(frames))
        return out
    require_rate(out, fps)
    suffix = out.suffix.lower()
    with atomic_file(out) as partial:
        if suffix == ".mp4":
            write_mp4(partial, frames, fps, stops, hold, enlarge=size is None)
        else:
            write_animation = write_webp if suffix == ".webp" else write_gif
            write_animation(partial, frames, fps, stops, hold)
    return out


def require_rate(out: Path, fps: float) -> None:
    """Refuse a GIF that players would show at another speed.

    Raises:
        UserError: when it would be.
    """
    if out.suffix.lower() == ".gif" and fps > GIF_FPS:
        fix = f"Use --fps {GIF_FPS} or less, or write an .mp4 or .webp."
        raise UserError(Problem("--fps", f"GIFs play at most {GIF_FPS} frames a second, found {fps:g}", fix))


def _name_problems(out: Path, force: bool) -> list[Problem]:
    """What is wrong with the name of a clip, and with replacing what is there."""
    if out.name.lower() in FORMATS or (out.suffix and out.suffix.lower() not in FORMATS):
        fix = f"Use a file name that ends in {', '.join(FORMATS)}, or a folder for PNGs, without a dot in its name."
        return [Problem("--out", f"found {str(out)!r}", fix)]
    if os.path.exists(out) and (not force or out.is_dir() == bool(out.suffix)):
        fix = "Use another name, or --force." if out.is_dir() != bool(out.suffix) else "Use another name."
        return [Problem("--out", f"{out} exists already", fix)]
    if out.is_dir() and any(path.suffix != ".png" or not path.is_file() for path in out.iterdir()):
        return [Problem("--out", f"{out} contains other files than PNGs, which would be lost", "Use another folder.")]
    return []


def check_output(out: Path, fps: float | None, hold: float | None, size: int | None, force: bool) -> None:
    """Refuse a clip that could not be written as asked, or that would replace a file without `force`.

    Raises:
        UserError: with every problem.
    """
    problems = own_problems("--out", out) or _name_problems(out, force)
    above = next(folder for folder in out.absolute().parents if os.path.exists(folder))
    if not above.is_dir() or not os.access(above, os.W_OK):
        problems.append(Problem("--out", f"nothing can be written to {above}", "Use a folder that you may write to."))
    if fps is not None and not SLOWEST_FPS <= fps <= FASTEST_FPS:
        problems.append(Problem("--fps", f"found {fps:g}", f"Write a number from {SLOWEST_FPS} to {FASTEST_FPS}."))
    if hold is not None and not 0 <= hold <= 60:
        problems.append(Problem("--hold", f"found {hold:g}", "Write seconds, 0 to 60."))
    if size is not None and size not in SIDES:
        problems.append(Problem("--size", f"found {size}", f"Write pixels, {SIDES[0]} to {SIDES[-1]}."))
    if problems:
        raise UserError(*problems)


def _frames(folder: Path, prepared: Path, facts: dict[str, Any]) -> Sequence[Frame]:
    """The frames of the morph's clips: the generated ones, with real ends where its settings ask for them."""
    frames = FrameFiles(frame_paths(folder / "frames", len(facts["positions"])))
    settings = facts["settings"]
    if settings["correct_ends"] == 0:
        return frames
    real = read_pictures(prepared / keyframe["file_name"] for keyframe in facts["keyframes"])
    stops, alphas = [keyframe["frame"] for keyframe in facts["keyframes"]], facts["alphas"]["morph"]
    return RealEnds(frames, real, stops, alphas, settings["correct_ends"])
