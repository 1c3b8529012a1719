"""A draft's form as a command of the command line, or everything that is wrong with it, field by field."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import Problem, UserError
from pipeline.overrides import overridden, parse_settings
from pipeline.params import NONE, MorphSpec, Params, SetSpec, slugify
from pipeline.pictures.rows import parse_row
from pipeline.sections import FASTEST_FPS, FRAMES_OF_TWO, SLOWEST_FPS
from pipeline.studio.jobs import Kind
from pipeline.studio.uploads import Draft

SECTIONS = (*SetSpec.SECTIONS, *MorphSpec.SECTIONS)
Share = Annotated[float, Field(ge=0, le=1)]


class PictureForm(BaseModel):
    """A picture in its place: its name in the draft, its caption, the point that its crop centres on."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str = Field(max_length=120)
    caption: str = Field(default="", max_length=2000)
    focus: tuple[Share, Share] | None = None


class StyleForm(BaseModel):
    """What the page of a style holds. style: a set that has one adapter for all; empty: one made of the pictures.

    over: the set whose pictures are changed. strength, weight, steps: texts, as params.yaml has them; an
    empty one: as there.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    title: str = Field(default="", max_length=200)
    pictures: list[PictureForm] = Field(default=[], max_length=64)
    style: str = Field(default="", max_length=100)
    over: str = Field(default="", max_length=100)
    strength: str = Field(default="", max_length=40)
    weight: str = Field(default="", max_length=40)
    steps: str = Field(default="", max_length=40)


class MorphForm(BaseModel):
    """What the page of a new morph holds. Values are texts, as params.yaml would have them; an empty one: as there.

    seconds: from one picture to the next; settings: by name, such as `morph.steps`; style: a set with one adapter for
    all, or nothing.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    title: str = Field(default="", max_length=200)
    pictures: list[PictureForm] = Field(default=[], max_length=64)
    frames: str = Field(default="", max_length=40)
    seconds: str = Field(default="", max_length=40)
    hold: str = Field(default="", max_length=40)
    loop: bool = False
    pacing: str = Field(default="", max_length=2000)
    style: str = Field(default="", max_length=100)
    settings: dict[Annotated[str, Field(max_length=100)], Annotated[str, Field(max_length=2000)]] = Field(
        default={}, max_length=100
    )


def command_of(form: MorphForm, draft: Draft, params: Params, taken: Sequence[str]) -> tuple[str, list[str]]:
    """The key of the new morph, and the command that makes it, but for `morphline`.

    taken: keys that jobs will make.

    Raises:
        UserError: with every problem; `where` is the field: `pictures`, `pictures.0.caption`, `frames`, `morph.steps`.
    """
    names, problems = [picture.name for picture in form.pictures], _picture_problems(form.pictures, draft)
    if len(form.pictures) < 2:
        problems.append(Problem("pictures", f"{len(form.pictures)} given", "A morph needs two or more."))
    settings, found = _settings(form, params)
    problems += found
    if form.style and form.style not in styles_of(params):
        problems.append(Problem("style", f"found {form.style!r}", f"Choose from: {', '.join(styles_of(params))}."))
    key, found = _key(form.title)
    problems += found
    if problems:
        raise UserError(*problems)
    key = free_key(key or "-".join(Path(name).stem for name in names)[:60].strip("-"), params, taken)
    command = ["morph", "--key", key, "--measure", "--preview", "--force", "--out", "{folder}/clip.mp4"]
    command += [f"--style={form.style}"] if form.style else []
    command += [*_row_options(form.pictures), *(f"--set={text}" for text in settings)]
    return key, [*command, "--", *(str(draft.picture(name)) for name in names)]


def commands_of_style(
    form: StyleForm, draft: Draft, params: Params, taken: Sequence[str]
) -> list[tuple[Kind, str, list[str]]]:
    """Kind, key and command of the jobs that make a style, if it is none that is there, and lay it over a set.

    Raises:
        UserError: with every problem; `where` is the field.
    """
    problems, styles = list[Problem](), styles_of(params)
    if form.style and form.style not in styles:
        problems.append(Problem("style", f"found {form.style!r}", f"Choose from: {', '.join(styles)}."))
    if not form.style:
        problems += _picture_problems(form.pictures, draft)
        if len(form.pictures) < 2:
            fix = "Drop two pictures or more in one style, or choose a style that is there."
            problems.append(Problem("pictures", f"{len(form.pictures)} given", fix))
    if form.over not in params.sets:
        problems.append(Problem("over", f"found {form.over!r}", f"Choose from: {', '.join(params.sets)}."))
    weight, found = _weight(form.weight)
    problems += found
    settings = {f"edit.{name}": text for name in ("strength", "steps") if (text := getattr(form, name).strip())}
    for name, text in settings.items():
        try:
            overridden(params.edit, "edit", parse_settings([f"{name}={text}"], ["edit"])["edit"])
        except UserError as error:
            problems += [Problem(name.removeprefix("edit."), one.found, one.fix) for one in error.problems]
    key, found = _key(form.title)
    problems += found
    if problems:
        raise UserError(*problems)
    jobs, style = list[tuple[Kind, str, list[str]]](), form.style
    if not style:
        style = free_key(key or "style", params, taken)
        pictures = [str(draft.picture(picture.name)) for picture in form.pictures]
        command = ["add", style, "--adapter", "set", *_row_options(form.pictures), "--", *pictures]
        jobs.append(("set", style, command))
    edit = free_key(f"{form.over}-{style}"[:60].strip("-"), params, [*taken, style])
    command = ["restyle", form.over, f"{style}:{weight:g}", "--key", edit]
    jobs.append(("edit", edit, [*command, *(f"--set={name}={text}" for name, text in settings.items())]))
    return jobs


def styles_of(params: Params) -> list[str]:
    """The sets that have one adapter for all."""
    return [key for key, spec in params.sets.items() if spec.adapter == "set"]


def _picture_problems(pictures: Sequence[PictureForm], draft: Draft) -> list[Problem]:
    uploads, problems = draft.uploads(), list[Problem]()
    names = [picture.name for picture in pictures]
    for number, picture in enumerate(pictures):
        if picture.name not in uploads or names.index(picture.name) != number:
            problems.append(Problem(f"pictures.{number}", "the picture is not here any more", "Drop it again."))
            continue
        _, faults = parse_row({"file_name": picture.name, "text": picture.caption})
        problems += [Problem(f"pictures.{number}.caption", *fault) for fault in faults]
    return problems


def _row_options(pictures: Sequence[PictureForm]) -> list[str]:
    options = []
    for picture in pictures:
        focus = "" if picture.focus is None else f"{picture.focus[0]:.4f},{picture.focus[1]:.4f}"
        options += [f"--caption={picture.caption}", f"--focus={focus}"]
    return options


def _key(title: str) -> tuple[str, list[Problem]]:
    key = slugify(title)[:60].strip("-")
    fix = "Use some letters or digits: folders and files are named by it."
    return key, [Problem("title", f"found {title.strip()!r}", fix)] if title.strip() and not key else []


def _weight(text: str) -> tuple[float, list[Problem]]:
    try:
        weight = float(text or 1)
    except ValueError:
        weight = math.nan
    wrong = [] if -4 <= weight <= 4 else [Problem("weight", f"found {text.strip()!r}", "Write a number, -4 to 4.")]
    return weight, wrong


def free_key(key: str, params: Params, taken: Sequence[str]) -> str:
    """The key, or one with a number after it where it is another's."""
    others = {NONE, *params.sets, *params.morphs, *params.edits, *taken}
    number, free = 1, key
    while free in others or Path("data/raw", free).exists():
        number += 1
        free = f"{key}-{number}"
    return free


def _settings(form: MorphForm, params: Params) -> tuple[list[str], list[Problem]]:
    """The form's values as `--set` takes them, and what is wrong with them, each at its field."""
    texts = {name: text.strip() for name, text in form.settings.items() if text.strip()}
    fields = {"morph.frames": "frames", "morph.hold": "hold", "morph.pacing": "pacing"}
    for name, field in fields.items():
        if text := getattr(form, field).strip():
            texts[name] = text
    if form.loop != params.morph.loop:
        texts["morph.loop"] = str(form.loop).lower()
    problems: list[Problem] = []
    values: dict[str, dict[str, object]] = {}
    for name, text in texts.items():
        try:
            for section, found in parse_settings([f"{name}={text}"], SECTIONS).items():
                values.setdefault(section, {}).update(found)
        except UserError as error:
            problems += [Problem(fields.get(name, name), one.found, one.fix) for one in error.problems]
    frames = params.morph.frames
    if len(form.pictures) == 2 and "frames" not in values.get("morph", {}):
        frames = max(frames, FRAMES_OF_TWO)  # as the command has it
    for section, own in values.items():
        try:
            merged = overridden(getattr(params, section), section, own)
            frames = merged.frames if "frames" in own else frames
        except UserError as error:
            for one in error.problems:
                name = one.where.removeprefix("--set ")
                problems.append(Problem(fields.get(name, name), one.found, one.fix))
    if form.seconds.strip() and not problems:
        fps = _rate(form.seconds, frames)
        if isinstance(fps, Problem):
            problems.append(fps)
        else:
            texts["morph.fps"] = f"{fps:.6g}"
    return [f"{name}={text}" for name, text in texts.items()], problems


def _rate(seconds: str, frames: int) -> float | Problem:
    """Frames a second, of so many seconds from one picture to the next."""
    try:
        fps = (frames - 1) / float(seconds)
    except (ValueError, ZeroDivisionError):
        return Problem("seconds", f"found {seconds.strip()!r}", "Write a number of seconds, such as 2.5.")
    if not SLOWEST_FPS <= fps <= FASTEST_FPS:
        fix = f"From {SLOWEST_FPS} to {FASTEST_FPS} a second can be shown."
        return Problem("seconds", f"{frames} frames in {seconds.strip()} seconds", fix)
    return fps
