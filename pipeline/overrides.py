"""Values of a shared section of params.yaml that a set, a morph or an edit overrides under its own key."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import Problem, UserError, shown
from pipeline.validation import KeyPath

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
