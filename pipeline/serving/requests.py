"""What may be asked of a served model, and how much of it: every number, text and picture of a request is bounded."""

import base64
import binascii
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from pipeline.errors import Problem, UserError, shown
from pipeline.sections import FASTEST_FPS, SLOWEST_FPS, Section
from pipeline.serving.package import Package
from pipeline.validation import explain_errors

MOST_PICTURES, MOST_FRAMES, MOST_STEPS = 8, 300, 100
MOST_MEGABYTES, MOST_MEGAPIXELS = 12, 25.0
"""Of one picture, as a file and decoded. Frames are of the package's own size, whatever a picture's."""
MOST_BODY = 32 * 2**20
"""Bytes of a request."""
MOST_WAITING = 8
"""Requests that wait for their turn, the one at work counted in."""

WHERE = Path("inputs")

Caption = Annotated[str, Field(max_length=1000)]
Weights = Annotated[
    dict[Annotated[str, Field(max_length=400)], Annotated[float, Field(ge=-4, le=4)]], Field(max_length=16)
]
Steps = Annotated[int, Field(ge=2, le=MOST_STEPS)]


class MorphRequest(Section):
    """A film from picture to picture.

    pictures: files in base64 (a data URI will do), or names of the package's keyframes. captions: one for each, null
    for a keyframe's own; None where all have one. adapters: over all frames, in place of the package's style. What is
    None is as the package has it. format: one MP4, or PNG files.
    """

    pictures: tuple[str, ...] = Field(strict=False, min_length=2, max_length=MOST_PICTURES)
    captions: tuple[Caption | None, ...] | None = Field(default=None, strict=False, max_length=MOST_PICTURES)
    adapters: Weights | None = None
    frames: Annotated[int, Field(ge=3, le=MOST_FRAMES)] | None = None
    steps: Steps | None = None
    loop: bool | None = None
    fps: Annotated[float, Field(ge=SLOWEST_FPS, le=FASTEST_FPS)] | None = None
    hold: Annotated[float, Field(ge=0, le=10)] | None = None
    format: Literal["mp4", "frames"] = "mp4"


class PaintRequest(Section):
    """Pictures from captions alone, one for each, in the style of adapters. What is None is as the package has it."""

    captions: tuple[Caption, ...] = Field(strict=False, min_length=1, max_length=MOST_PICTURES)
    adapters: Weights | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    steps: Steps | None = None
    guidance: Annotated[float, Field(ge=1, le=50)] | None = None


def parse_request(inputs: Any, package: Package) -> MorphRequest | PaintRequest:
    """The request in what a server was sent: a morph where it has `pictures`, else pictures from captions.

    Raises:
        UserError: with the first thing that is wrong with it.
    """
    if not isinstance(inputs, dict) or not all(isinstance(key, str) for key in inputs):
        raise UserError(
            Problem("inputs", f"found {shown(inputs)}", 'Send one object, such as {"captions": ["a lake"]}.')
        )
    kind = MorphRequest if "pictures" in inputs else PaintRequest
    try:
        request = kind.model_validate(inputs)
    except ValidationError as error:
        raise UserError(explain_errors(error.errors(include_url=False), kind, WHERE)[0]) from None
    unknown = [name for name in request.adapters or () if name not in package.adapters]
    if unknown:
        there = ", ".join(package.adapters[:20]) or "none"
        raise _wrong("adapters", f"there is no {unknown[0]!r}", f"This model has: {there}.")
    if isinstance(request, MorphRequest):
        _require_film(request, package)
    return request


def picture_file(text: str, where: str) -> bytes:
    """The file that a request holds in base64, after `data:image/png;base64,` or not.

    Raises:
        UserError: when it is no base64, or too long.
    """
    content = text.partition(",")[2] if text.startswith("data:") else text
    if len(content) * 3 // 4 > MOST_MEGABYTES * 2**20:
        raise _wrong(
            where, f"a picture of {len(content) * 3 // 4 / 2**20:.1f} MB", f"Send at most {MOST_MEGABYTES} MB."
        )
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        fix = "Send a picture file in base64, or the name of one of the model's keyframes."
        raise _wrong(where, f"found {shown(text)}", fix) from None


def _require_film(request: MorphRequest, package: Package) -> None:
    known = {keyframe.name for keyframe in package.keyframes}
    count = len(request.pictures)
    captions = request.captions or (None,) * count
    if len(captions) != count:
        raise _wrong("captions", f"{len(captions)} for {count} pictures", "Send one for each, or none at all.")
    for number, (picture, caption) in enumerate(zip(request.pictures, captions, strict=True)):
        if caption is None and picture not in known:
            names = f"; the model's keyframes are {', '.join(sorted(known))}" if known else ""
            fix = f'Write what it shows, or ""{names}.'
            raise _wrong(f"captions.{number}", "none, for a picture of your own", fix)
    loop = package.morph.loop if request.loop is None else request.loop
    pacing = package.morph.pacing
    if request.frames is not None and not isinstance(pacing, str):
        fix = f"Leave it out: this model's frames lie where its recipe says, {len(pacing)} a segment."
        raise _wrong("frames", f"found {request.frames}", fix)
    each = len(pacing) if not isinstance(pacing, str) else request.frames or package.morph.frames
    frames = (each - 1) * (count if loop else count - 1) + (0 if loop else 1)
    if frames > MOST_FRAMES:
        raise _wrong("frames", f"{frames} in all", f"Ask for at most {MOST_FRAMES}: fewer frames or pictures.")


def _wrong(key: str, found: str, fix: str) -> UserError:
    return UserError(Problem(f"{WHERE}: {key}", found, fix))
