"""One row of metadata.jsonl: its columns, their values and their mistakes."""

import difflib
import json
import re
import reprlib
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Fraction = Annotated[float, Field(ge=0, le=1)]

_CAPTION_ALIASES = ("caption", "prompt", "description", "label", "title")

# datasets (5.2, data_files.py) takes a file name with one of these words for a train, validation or test split, and
# then leaves the other pictures, and metadata.jsonl, out.
_SPLIT_WORD = re.compile(
    r"(?:^|[-._ 0-9])(train|training|validation|valid|dev|val|test|testing|eval|evaluation)(?=[-._ 0-9]|$)"
)

_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d(:\d\d){0,2}(\.\d+)?(Z|[-+]\d\d:?\d\d)?)?")

ALLOWED: Final = {
    "file_name": 'a text: the name of a picture in the same folder, "dawn.jpg"',
    "text": 'a text: the caption, "a mountain lake at dawn"',
    "focus": "[x, y], each from 0 (left, top) to 1 (right, bottom) of the upright picture",
    "mask": "a text: the name of a picture of the same size in the same folder, white where an edit may change it",
    "box": "[left, top, right, bottom], each from 0 (left, top) to 1 (right, bottom) of the upright picture",
}


class Row(BaseModel):
    """One picture of a set: its file, its caption and, if need be, what the crop must keep.

    focus: (x, y), the point that the crop is centred on; box: (left, top, right, bottom), the part that it keeps, and
    which wins over focus. Both in fractions of the picture as it is seen, EXIF rotation applied. mask: a picture beside
    it, of its size, white where an edit may change it. Other columns, which imagefolder users have, are ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    file_name: str
    text: str
    focus: Annotated[tuple[Fraction, Fraction], Field(strict=False)] | None = None
    box: Annotated[tuple[Fraction, Fraction, Fraction, Fraction], Field(strict=False)] | None = None
    mask: str | None = None


Fault = tuple[str, str]
"""What was found, and how to fix it."""


def parse_object(line: str) -> dict[str, Any] | Fault:
    """The JSON object of one line, or what is wrong with it."""
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        collected = dict(pairs)
        if len(collected) < len(pairs):
            repeated.extend(key for key in collected if sum(key == other for other, _ in pairs) > 1)
        return collected

    example = 'Write one JSON object on the line: {"file_name": "dawn.jpg", "text": "a mountain lake at dawn"}.'
    try:
        value = json.loads(line, object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        return f"not valid JSON ({error.msg}, column {error.colno})", example
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets within brackets
        return f"JSON that cannot be read ({type(error).__name__})", example
    if not isinstance(value, dict):
        return f"found {escaped(value)}, not a JSON object", example
    if repeated:
        return f"the key {escaped(repeated[0])} occurs twice", "Keep one of them."
    return value


def parse_row(columns: Mapping[str, Any]) -> tuple[Row | None, list[Fault]]:
    """The row of a line's columns, if they are valid, and everything that is wrong with them."""
    faults: list[Fault] = []
    row = None
    try:
        row = Row.model_validate(columns)
    except ValidationError as error:
        fields = dict.fromkeys(str(detail["loc"][0]) for detail in error.errors(include_url=False))
        faults += [_field_fault(field, columns) for field in fields]
    name, text = columns.get("file_name"), columns.get("text")
    if isinstance(name, str):
        faults += name_faults(name)
    if isinstance(mask := columns.get("mask"), str):
        faults += [(found.replace("file_name", "mask", 1), fix) for found, fix in name_faults(mask)]
    if isinstance(text, str):
        faults += _text_faults(text)
    if row and row.box and not (row.box[0] < row.box[2] and row.box[1] < row.box[3]):
        faults.append(
            (f"box {escaped(columns['box'])} has no area", f"Allowed: {ALLOWED['box']}, left < right, top < bottom.")
        )
    return (None if faults else row), faults


def misspelt_columns(columns: Mapping[str, Any]) -> dict[str, str]:
    """Columns whose names look like `focus` or `box` misspelt, and which of the two."""
    misspelt = {}
    for column in columns.keys() - Row.model_fields.keys():
        letters = re.sub(r"[^a-z]", "", column.lower())
        for match in difflib.get_close_matches(letters, ("focus", "box", "focuspoint", "cropbox"), n=1, cutoff=0.8):
            field = "focus" if match.startswith("focus") else "box"
            if field not in columns:
                misspelt[column] = field
    return misspelt


def escaped(value: object) -> str:
    """A value for a message: shortened, on one line, without terminal control sequences."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return printable(short.repr(value))


def printable(text: object) -> str:
    """A text or path with every character escaped that a terminal or a file cannot show."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def _field_fault(field: str, columns: Mapping[str, Any]) -> Fault:
    if field in columns:
        return f"{field} is {escaped(columns[field])}", f"Allowed: {ALLOWED[field]}."
    if field == "text":
        for alias in _CAPTION_ALIASES:
            if alias in columns:
                return "no caption", f"Rename the column {alias!r} to 'text'."
        return "no caption", f"Add the key 'text': {ALLOWED[field].removeprefix('a text: ')}."
    return f"no {field}", f"Add the key {field!r}: {ALLOWED[field].removeprefix('a text: ')}."


def name_faults(name: str) -> list[Fault]:
    """What is wrong with a file name: at most one fault, the first that must be fixed."""
    within = "Put the picture directly beside metadata.jsonl and write only its name."
    split = _SPLIT_WORD.search(name.rpartition(".")[0] or name)
    if not name.strip():
        return [("file_name is empty", f"Allowed: {ALLOWED['file_name']}.")]
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        return [(f"file_name {escaped(name)} has a control character", "Rename the picture without it.")]
    if "\\" in name or name.startswith("/") or ".." in name.split("/"):
        return [(f"file_name {escaped(name)} leaves the folder", within)]
    if "/" in name:
        return [(f"file_name {escaped(name)} lies in a subfolder; a set is one flat folder", within)]
    if name.startswith("."):
        return [(f"file_name {escaped(name)} begins with a dot, so `datasets` would skip it", "Rename the picture.")]
    if "::" in name:
        return [(f"file_name {escaped(name)} contains '::', which `datasets` cannot open", "Rename the picture.")]
    if split:
        found = (
            f"file_name {escaped(name)} contains the word {split[1]!r}, which `datasets` takes for a split of the set"
        )
        return [(found, "Rename the picture.")]
    if len(name.encode()) > 240:
        return [(f"file_name {escaped(name)} is longer than 240 bytes", "Rename the picture.")]
    return []


def _text_faults(text: str) -> list[Fault]:
    if not text:
        return []  # no caption
    if not text.strip():
        return [("the caption is blank", "Write into 'text' what the picture shows, or \"\" for no caption.")]
    if _DATE.fullmatch(text.strip()):
        found = f"the caption {escaped(text)} is only a date, which `datasets` would not read as a text"
        return [(found, "Write into 'text' what the picture shows.")]
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r" for c in text):
        return [(f"the caption {escaped(text)} has a control character", "Remove it.")]
    return []
