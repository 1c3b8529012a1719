"""A draft's form as a command of the command line, or everything that is wrong with it, field by field."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import Problem, UserError
from pipeline.overrides import overridden, parse_settings
from pipeline.params import MorphSpec, Params, SetSpec, slugify
from pipeline.pictures.rows import parse_row
from pipeline.studio.uploads import Draft

SECTIONS = (*SetSpec.SECTIONS, *MorphSpec.SECTIONS)
Share = Annotated[float, Field(ge=0, le=1)]


class PictureForm(BaseModel):
    """A picture in its place: its name in the draft, its caption, the point that its crop centres on."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str = Field(max_length=120)
    caption: str = Field(default="", max_length=2000)
    focus: tuple[Share, Share] | None = None


class MorphForm(BaseModel):
    """What the page of a new morph holds. Values are texts, as params.yaml would have them; an empty one: as there.

    seconds: from one picture to the next; settings: by name, such as `morph.steps`.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    title: str = Field(default="", max_length=200)
    pictures: list[PictureForm] = Field(default=[], max_length=64)
    frames: str = Field(default="", max_length=40)
    seconds: str = Field(default="", max_length=40)
    hold: str = Field(default="", max_length=40)
    loop: bool = False
    pacing: str = Field(default="", max_length=2000)
    settings: dict[Annotated[str, Field(max_length=100)], Annotated[str, Field(max_length=2000)]] = Field(
        default={}, max_length=100
    )


def command_of(form: MorphForm, draft: Draft, params: Params, taken: Sequence[str]) -> tuple[str, list[str]]:
    """The key of the new morph, and the command that makes it, but for `morphline`.

    taken: keys that jobs will make.

    Raises:
        UserError: with every problem; `where` is the field: `pictures`, `pictures.0.caption`, `frames`, `morph.steps`.
    """
    uploads, problems = draft.uploads(), list[Problem]()
    if len(form.pictures) < 2:
        problems.append(Problem("pictures", f"{len(form.pictures)} given", "A morph needs two or more."))
    names = [picture.name for picture in form.pictures]
    for number, picture in enumerate(form.pictures):
        if picture.name not in uploads or names.index(picture.name) != number:
            problems.append(Problem(f"pictures.{number}", "the picture is not here any more", "Drop it again."))
            continue
        _, faults = parse_row({"file_name": picture.name, "text": picture.caption})
        problems += [Problem(f"pictures.{number}.caption", *fault) for fault in faults]
    settings, found = _settings(form, params)
    problems += found
    key = slugify(form.title)[:60].strip("-")
    if form.title.strip() and not key:
        fix = "Use some letters or digits: folders and files are named by it."
        problems.append(Problem("title", f"found {form.title.strip()!r}", fix))
    if problems:
        raise UserError(*problems)
    key = free_key(key or "-".join(Path(name).stem for name in names)[:60].strip("-"), params, taken)
    command = ["morph", "--key", key, "--measure", "--force", "--out", "{folder}/clip.mp4"]
    for picture in form.pictures:
        focus = "" if picture.focus is None else f"{picture.focus[0]:.4f},{picture.focus[1]:.4f}"
        command += [f"--caption={picture.caption}", f"--focus={focus}"]
    command += [f"--set={text}" for text in settings]
    return key, [*command, "--", *(str(draft.picture(name)) for name in names)]


def free_key(key: str, params: Params, taken: Sequence[str]) -> str:
    """The key, or one with a number after it where it is another's."""
    others = {*params.sets, *params.morphs, *params.edits, *taken}
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
    for section, own in values.items():
        try:
            merged = overridden(getattr(params, section), section, own)
            frames = getattr(merged, "frames", frames)
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
    if not 0 < fps <= 120:
        return Problem("seconds", f"{frames} frames in {seconds.strip()} seconds", "At most 120 a second can be shown.")
    return fps
