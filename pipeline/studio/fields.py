"""The keys of params.yaml as fields of a form: each with its own comment, its range and the project's value."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from pipeline.inputs import read_json, read_plain
from pipeline.params import Params
from pipeline.pictures.rows import parse_object

OF_SECTIONS = ("morph", "train", "prepare")


@dataclass(frozen=True)
class Field:
    """name: section and key, such as `morph.steps`. value: the project's, as params.yaml writes it. choices: all that
    may be written, where those are few. lowest, highest: of a number."""

    name: str
    comment: str
    value: str
    kind: Literal["number", "choice", "text"]
    choices: Sequence[str] = ()
    lowest: float | None = None
    highest: float | None = None


def fields_of(params: Params, text: str, without: Sequence[str] = ()) -> dict[str, list[Field]]:
    """The fields by section. text: of params.yaml. without: names of those that the form has elsewhere."""
    found: dict[str, list[Field]] = {}
    for section in OF_SECTIONS:
        values = getattr(params, section)
        comments = comments_of(text, section, list(type(values).model_fields))
        found[section] = [
            _field(f"{section}.{name}", info, getattr(values, name), comments.get(name, ""))
            for name, info in type(values).model_fields.items()
            if f"{section}.{name}" not in without
        ]
    return found


def comments_of(text: str, section: str, names: Sequence[str]) -> dict[str, str]:
    """The comments of named keys of a section. A comment of several keys says of the later ones `name: what it is`."""
    comments: dict[str, list[str]] = {}
    block: dict[str, list[str]] = {"": []}
    of, before, inside = "", "", False
    for line in text.splitlines():
        if re.match(r"\S", line):
            inside = line.startswith(f"{section}:")
        if not inside:
            continue
        if comment := re.match(r"  # ?(.*)", line):
            other = re.match(r"(\w+): (.*)", comment[1])
            of = other[1] if other and other[1] in names else of
            block.setdefault(of, []).append(other[2] if other and other[1] == of and of else comment[1])
        elif key := re.match(r"  (\w+):", line):
            if block[""] or key[1] not in comments:  # without one of its own, it shares that of the key before
                comments[key[1]] = block[""] or comments.get(before, [])
            before = key[1]
            comments |= {name: lines for name, lines in block.items() if name}
            block, of = {"": []}, ""
    return {name: " ".join(part.strip() for part in comments[name]) for name in names if name in comments}


def _field(name: str, info: FieldInfo, value: Any, comment: str) -> Field:
    limits: dict[str, float] = {}
    for bound in info.metadata:
        for side in ("ge", "gt", "le", "lt"):
            if getattr(bound, side, None) is not None:
                limits[side] = float(getattr(bound, side))
    choices: Sequence[str] = ()
    if info.annotation is bool:
        choices = ("true", "false")
    elif get_origin(info.annotation) is Literal:
        choices = [str(choice) for choice in get_args(info.annotation)]
    number = info.annotation in (int, float)
    kind: Literal["number", "choice", "text"] = "choice" if choices else "number" if number else "text"
    lowest, highest = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    return Field(name, comment, as_yaml(value), kind, choices, lowest, highest)


def as_yaml(value: Any) -> str:
    """A plain value as params.yaml may have it, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(as_yaml(item) for item in value)}]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value != "" else "''"


def captions_known(params: Params, most: int = 40) -> list[str]:
    """Captions of the project's sets, to begin with."""
    found: dict[str, None] = {}
    for key in params.sets:
        try:
            lines = read_plain(Path("data/raw", key, "metadata.jsonl")).decode("utf-8").splitlines()
        except (OSError, ValueError):
            continue  # `morphline check` says what is wrong with it
        for row in (parse_object(line) for line in lines[:most]):
            if isinstance(row, dict) and isinstance(row.get("text"), str) and row["text"]:
                found[row["text"]] = None
    return list(found)[:most]


def words_of(source: str, most: int = 200) -> list[str]:
    """The words that a small base knows; none of a base that knows thousands, or that is not a folder here."""
    path = Path(source, "tokenizer", "tokenizer.json")
    try:
        vocabulary: Mapping[str, int] = read_json(path)["model"]["vocab"]
        words = [word.removesuffix("</w>") for word in vocabulary if word.endswith("</w>")]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    words = sorted(word for word in words if len(word) > 2 and word.isascii() and word.isalpha())
    return words if len(vocabulary) < 5000 and len(words) <= most else []
