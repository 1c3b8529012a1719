"""Values of a shared section of params.yaml that a set, a morph or an edit overrides under its own key."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.errors import Problem, UserError, shown
from pipeline.inputs import BadYaml, parse_yaml
from pipeline.sections import Section
from pipeline.validation import KeyPath, explain_errors

OneSection = TypeVar("OneSection", bound=Section)

Overrides = Mapping[KeyPath, set[str]]
"""(`sets`, key of a set, section) to the names that the set overrides there; morphs and edits likewise."""


def merge_overrides(raw: dict[str, Any], sections: Mapping[str, Sequence[str]], file: Path) -> Overrides:
    """Merge shared sections into the entries of `raw`, in place. sections: by group (`sets` and so on)
    those that its entries may override.

    Raises:
        UserError: where overrides are missing, even as `{}`: DVC can declare only params keys that exist.
    """
    overrides: dict[KeyPath, set[str]] = {}
    problems = []
    for group, names in sections.items():
        entries = raw.get(group)
        for key, entry in entries.items() if isinstance(entries, dict) else ():
            for section in names if isinstance(entry, dict) else ():
                own, shared = entry.get(section), raw.get(section)
                if isinstance(own, dict):
                    overrides[group, key, section] = set(own)
                    entry[section] = {**(shared if isinstance(shared, dict) else {}), **own}
                else:
                    found = f"found {shown(own)}" if section in entry else "the key is missing"
                    fix = f"Write `{section}: {{}}`, or a mapping of values of `{section}` to override."
                    problems.append(Problem(f"{file}: {group}.{key}.{section}", found, fix))
    if problems:
        raise UserError(*problems)
    return overrides


def is_inherited(location: KeyPath, overrides: Overrides) -> bool:
    """Whether an error in a set, a morph or an edit comes from the shared section, where it is reported too."""
    return location[:3] in overrides and location[3] not in overrides[location[:3]]


def parse_settings(texts: Sequence[str], sections: Sequence[str]) -> dict[str, dict[str, object]]:
    """Values by section and name out of texts such as `morph.steps=12`, each value as YAML reads it.

    Raises:
        UserError: with every text that is no such thing, or names another section.
    """
    found: dict[str, dict[str, object]] = {name: {} for name in sections}
    problems = []
    for text in texts:
        where, equals, value = text.partition("=")
        section, point, name = where.strip().partition(".")
        if not (equals and point and name and section in sections):
            fix = f"Write SECTION.NAME=VALUE, such as morph.loop=true; sections: {', '.join(sections)}."
            problems.append(Problem("--set", f"found {shown(text)}", fix))
            continue
        if name in found[section]:
            problems.append(Problem(f"--set {where.strip()}", "it is given twice", "Leave one of them out."))
        try:
            found[section][name] = parse_yaml(value)
        except BadYaml as error:
            problems.append(Problem(f"--set {where.strip()}", str(error), "Write a value as params.yaml has it."))
    if problems:
        raise UserError(*problems)
    return found


def overridden(section: OneSection, name: str, values: Mapping[str, object]) -> OneSection:
    """A section of params.yaml, called `name`, with other values, which are validated as those of the file are.

    Raises:
        UserError: with every value that is refused, at `--set NAME.KEY`.
    """
    try:
        return type(section).model_validate({**section.model_dump(by_alias=True), **values})
    except ValidationError as error:
        raise UserError(
            *(
                Problem(problem.where.replace(": ", ".", 1), problem.found, problem.fix)
                for problem in explain_errors(error.errors(include_url=False), type(section), Path(f"--set {name}"))
            )
        ) from None
