"""`morphline morph a.jpg b.jpg`: from a few pictures to a clip in one command, through the same tracked pipeline."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from pipeline.adapters.store import ADAPTERS
from pipeline.commands import add, clip, entries
from pipeline.errors import Problem, UserError
from pipeline.inputs import open_plain
from pipeline.outputs import atomic_file, require_room
from pipeline.overrides import overridden
from pipeline.params import Params, load_params, slugify
from pipeline.sections import FRAMES_OF_TWO
from pipeline.stages import check


def run(
    pictures: Sequence[Path],
    captions: Sequence[str],
    out: Path,
    *,
    key: str | None = None,
    measure: bool = False,
    preview: bool = False,
    extras: add.Extras | None = None,
    frames: int | None = None,
    steps: int | None = None,
    fps: float | None = None,
    hold: float | None = None,
    size: int | None = None,
    force: bool = False,
) -> Path:
    """Add the pictures as a set and a morph (unless they were added before), run the pipeline, and write the clip.

    captions: one for each picture, one for all, or none. key: of the set and the morph; None: from the pictures' names.
    measure: whether the stage `evaluate` runs, too. preview: whether coarse frames by the base alone come first, where
    there is something to train. frames, steps: see `morph_settings`.

    Raises:
        UserError: for pictures or captions that `morphline add` refuses, a clip that `morphline clip` would not write,
            what `morphline check` says of what was added, which then is taken back, and a pipeline that failed, which
            has printed why.
        OSError: on a full disk.
    """
    extras = extras or add.Extras()
    clip.check_output(out, fps, hold, size, force)
    params = params_for(pictures, captions, extras)
    own = {**extras.settings, "morph": morph_settings(params, pictures, frames, steps, extras.of_section("morph"))}
    clip.require_rate(out, overridden(params.morph, "morph", own["morph"]).fps if fps is None else fps)
    extras = replace(extras, settings=own)
    with entries.sole_writer():
        params = load_params()  # another command may have added something since
        place = find_place(params, pictures, add.one_for_each(pictures, captions), extras, key)
        before = entries.PARAMS.read_bytes()
        if place.of is None:
            add.run(place.key, pictures, captions, extras)
        elif not place.known:
            add.add_morph(place.key, place.of, pictures, extras)
        after = entries.PARAMS.read_bytes()
    if preview and not (ADAPTERS / (place.of or place.key)).exists():
        # In a process of its own, since it loads the base; whatever it finds wrong, the pipeline says in its own words.
        subprocess.run([sys.executable, "-m", "pipeline", "preview", place.key])
    target = f"{'evaluate' if measure else 'morph'}@{place.key}"
    code = reproduce(target)
    if code and before != after:
        added = [("morphs", place.key), *([("sets", place.key)] if place.of is None else [])]
        take_back_if_refused(added, before, after)
    if code:
        fix = f"Fix the problem that it printed above, then run `dvc repro {target}` or the same command again."
        raise UserError(Problem(f"dvc repro {target}", f"it failed (exit code {code})", fix))
    return clip.run(place.key, out, fps=fps, hold=hold, size=size, force=force)


def reproduce(*targets: str) -> int:
    """Run `dvc repro`; its exit code.

    Raises:
        KeyboardInterrupt: at Ctrl-C, which goes to the stage too: once that has saved where it is, and has ended.
        OSError: on a full disk.
    """
    _require_room()
    code = _repro(*targets)
    if code:
        _require_room()
    return code


def _require_room() -> None:
    """Raises OSError where DVC would meet a full disk: it says `disk I/O error`, and not where."""
    from dvc.dirs import site_cache_dir

    require_room(Path(), Path(".dvc"), Path(site_cache_dir()))


def _repro(*targets: str) -> int:
    # Stages call `morphline`, which lies beside this Python, and not on the path where no environment is activated.
    path = os.pathsep.join(filter(None, [str(Path(sys.executable).parent), os.environ.get("PATH")]))
    command = [sys.executable, "-m", "dvc", "repro", *targets]
    process, stopped = subprocess.Popen(command, env={**os.environ, "PATH": path}), False
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            stopped = True
    if stopped:
        raise KeyboardInterrupt
    return code


def take_back_if_refused(added: Sequence[tuple[str, str]], before: bytes, after: bytes) -> None:
    """Undo what was added where `morphline check` refuses it: else it would stop all of the pipeline.

    added: group of params.yaml and key of what was added. before, after: that file, without and with it.

    Raises:
        UserError: with what it says of that.
    """
    try:
        check.run()
    except UserError as error:
        parts = [f": {group}.{key}{end}" for group, key in added for end in (":", ".")]
        sets = [add.RAW / key for group, key in added if group == "sets"]
        ours = [
            problem
            for problem in error.problems
            if any(part in problem.where for part in parts) or any(f"{path}/" in problem.where for path in sets)
        ]
        with entries.sole_writer():
            if ours and entries.PARAMS.read_bytes() == after:
                with atomic_file(entries.PARAMS) as path:
                    path.write_bytes(before)
                for path in sets:
                    shutil.rmtree(path)
                raise UserError(*ours) from None


def params_for(pictures: Sequence[Path], captions: Sequence[str], extras: add.Extras | None = None) -> Params:
    """The params, for pictures, captions and extras in which there is no mistake.

    Raises:
        UserError: with every mistake; who gives the key of a morph for a picture is told what to run instead.
    """
    params = load_params()
    keys = [str(path) for path in pictures if str(path) in params.morphs and not path.exists()]
    fix = "`dvc repro morph@{0}` makes it, `morphline clip {0} --out {0}.mp4` writes its clip anew."
    problems = [Problem(key, "this is a morph of params.yaml, not a picture", fix.format(key)) for key in keys]
    extras = extras or add.Extras()
    problems = problems or add.find_mistakes(pictures, captions, extras.focuses)
    if problems := problems + add.extras_problems(params, extras):
        raise UserError(*problems)
    return params


def morph_settings(
    params: Params,
    pictures: Sequence[Path],
    frames: int | None,
    steps: int | None,
    own: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """What a morph through the pictures overrides of the section `morph`.

    frames: of each segment, both keyframes included; None: as in params.yaml, but of two FRAMES_OF_TWO at least.
    steps: of inversion and of sampling; None: as in params.yaml. own: other values, which win over both.
    """
    asked = frames is not None
    if not asked and "frames" not in (own or {}) and len(pictures) == 2 and params.morph.frames < FRAMES_OF_TWO:
        frames = FRAMES_OF_TWO
    for name, value in (("frames", frames), ("steps", steps)):
        if value is not None and name in (own or {}):
            fix = "Leave one of them out."
            raise UserError(Problem(f"--{name}", f"it is also given as --set morph.{name}", fix))
    given = {"frames": frames, "steps": steps, "inversion_steps": steps}
    values = {**{name: value for name, value in given.items() if value is not None}, **(own or {})}
    pacing = overridden(params.morph, "morph", values).pacing
    if asked and not isinstance(pacing, str):
        fix = f"Leave it out: morph.pacing says where frames lie, {len(pacing)} from a picture to the next."
        raise UserError(Problem("--frames", f"found {frames}", fix))
    return values


@dataclass(frozen=True)
class Place:
    """Where a morph is, or is to be. of: the set that has its pictures; None: there is none. known: it is there."""

    key: str
    of: str | None
    known: bool


def find_place(
    params: Params, pictures: Sequence[Path], captions: Sequence[str], extras: add.Extras, key: str | None = None
) -> Place:
    """A key from the pictures' names, or the one given, and what was added before of the same pictures, captions and
    settings.

    Raises:
        UserError: where the key that is given is that of something else.
    """
    stem = key or "-".join(slugify(picture.stem) for picture in pictures)[:60].strip("-") or "morph"
    settings = overridden(params.morph, "morph", extras.of_section("morph"))
    focuses = add.focus_for_each(pictures, extras.focuses)

    def is_set(name: str) -> bool:
        if name not in params.sets or not _was_added(add.RAW / name, pictures, captions, focuses):
            return False
        spec = params.sets[name]
        return all(
            getattr(spec, part) == overridden(getattr(params, part), part, extras.of_section(part))
            for part in spec.SECTIONS
        )

    of: str | None = None
    for number in count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        spec = params.morphs.get(name)
        if spec and spec.morph == settings and spec.style == extras.style and is_set(spec.set):
            return Place(name, spec.set, known=True)
        if of is None and is_set(name):
            of = name
        if name not in params.sets and spec is None and not (add.RAW / name).exists():
            return Place(name, of, known=False)
        if key and (spec or of is None):
            raise UserError(Problem("--key", f"{key!r} exists already", "Choose another key; nothing is overwritten."))
        if key:
            return Place(name, of, known=False)
    raise AssertionError("unreachable: there are always more numbers")


def _was_added(
    folder: Path, pictures: Sequence[Path], captions: Sequence[str], focuses: Sequence[list[float] | None]
) -> bool:
    try:
        lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        texts, points = [row["text"] for row in rows], [row.get("focus") for row in rows]
        contents = [_content(folder / row["file_name"]) for row in rows]
        same = texts == list(captions) and points == list(focuses)
        return same and contents == [_content(picture) for picture in pictures]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # another set, or one that was changed: `find_place` tries another name


def _content(path: Path) -> bytes:
    with open_plain(path) as file:
        return file.read()
