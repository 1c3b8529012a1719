"""Pydantic's validation errors as problems: the key's path, what was found there and what it should be."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pipeline.errors import Problem, shown

KeyPath = tuple[int | str, ...]
Fields = Mapping[str, FieldInfo]

# Where pydantic's own words are about Python's types rather than YAML's.
_YAML_WORDS = {
    "tuple_type": "be a list",
    "dict_type": "be a mapping",
    "model_type": "be a mapping",
    "bool_type": "be true or false",
    "string_pattern_mismatch": "have only lower-case letters, digits and (not first) hyphens",
}
_OF_KEY = "[key]"  # how pydantic ends the location of an error in a mapping's key


def explain_errors(errors: Iterable[ErrorDetails], model: type[BaseModel], file: Path) -> list[Problem]:
    """One problem for each mistake in `file`, whose content failed to validate as `model`."""
    by_path: dict[KeyPath, list[ErrorDetails]] = {}
    siblings: dict[KeyPath, Fields] = {}
    for error in errors:
        path, fields = _locate(error["loc"], model)
        by_path.setdefault(path, []).append(error)
        siblings[path] = fields
    # For a list with a faulty item, pydantic also reports the list: as too short without it, or as no other member of
    # a union. Only the innermost error says what to change.
    outer = {path[:length] for path in by_path for length in range(len(path))}
    return [_explain(path, by_path[path], siblings[path], file) for path in by_path if path not in outer]


def _locate(location: KeyPath, model: type[BaseModel]) -> tuple[KeyPath, Fields]:
    """An error's path without pydantic's names for the members of a union, and the fields beside it, if it is one."""
    path: list[int | str] = []
    fields: Fields = {}
    annotation: Any = model
    for part in location:
        if get_origin(annotation) is dict:
            annotation, fields = get_args(annotation)[1], {}
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
            annotation = fields[str(part)].annotation if part in fields else None
        elif isinstance(part, int):
            fields = {}
            if get_origin(annotation) in (tuple, list):
                annotation = get_args(annotation)[0]
        else:
            continue  # a member of a union
        path.append(part)
    return tuple(path), fields


def _explain(path: KeyPath, errors: Sequence[ErrorDetails], fields: Fields, file: Path) -> Problem:
    where = f"{file}: {'.'.join(str(part) for part in path if part != _OF_KEY)}"
    name, kind = str(path[-1]), errors[0]["type"]
    if kind == "missing":
        explained = "; the comments in the shipped params.yaml explain each key" if file.suffix == ".yaml" else ""
        return Problem(where, "the key is missing", f"Add it{explained}.")
    if kind == "extra_forbidden":
        similar = difflib.get_close_matches(name, fields, n=1)
        hint = f"Did you mean {similar[0]!r}? " if similar else ""
        return Problem(where, "unknown key", f"{hint}Allowed here: {', '.join(fields)}.")
    allowed = [_in_words(error) for error in errors]
    if name in fields and type(None) in get_args(fields[name].annotation):
        allowed.append("be null")
    return Problem(where, f"found {shown(errors[0]['input'])}", f"It should {', or '.join(allowed)}.")


def _in_words(error: ErrorDetails) -> str:
    if error["type"] == "string_pattern_mismatch" and "safetensors" in error["ctx"]["pattern"]:
        return "be a set's key, a set/picture, or the name of a .safetensors file in models/loras"
    return _YAML_WORDS.get(error["type"], _in_short(error["msg"]))


def _in_short(message: str) -> str:
    """`be a valid integer`, of pydantic's "Input should be a valid integer"."""
    return message.partition(" should ")[2].replace(" after validation", "") or f"be valid ({message})"
