"""`morphline restyle alps woodcut`: the pictures of a set, changed by other sets' adapters, in one command."""

import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from pydantic import ValidationError

from pipeline.adapters.store import LORAS, is_file_name
from pipeline.commands import entries
from pipeline.commands.chosen import weighted
from pipeline.commands.morph import reproduce, take_back_if_refused
from pipeline.errors import Problem, UserError
from pipeline.overrides import overridden, parse_settings
from pipeline.params import KEY, LONGEST_KEY, EditSpec, Params, load_params, slugify
from pipeline.validation import explain_errors


def run(of: str, adapters: Sequence[str], key: str | None, settings: Sequence[str]) -> Path:
    """Add an edit of the set `of` (unless it was added before), make it, and give the sheet of its pictures.

    adapters: as on the command line, `woodcut` or `woodcut:0.8`. key: of the edit; None: from the names. settings:
    values of the section `edit`, such as `edit.strength=0.5`.

    Raises:
        UserError: for an unknown set, an adapter or a value that is refused, and a pipeline that failed.
    """
    params = load_params()
    params.get_set(of)
    named = _named(adapters, params)
    own = parse_settings(settings, EditSpec.SECTIONS)["edit"]
    section = overridden(params.edit, "edit", own)
    try:
        wanted = EditSpec(set=of, adapters=named, edit=section)
    except ValidationError as error:
        raise UserError(*explain_errors(error.errors(include_url=False), EditSpec, Path("morphline restyle"))) from None
    with entries.sole_writer():
        found, known = _place(load_params(), wanted, key)
        before = entries.PARAMS.read_bytes()
        if not known:
            entries.add_entries({"edits": {"set": of, "adapters": named, "edit": own}}, found)
        after = entries.PARAMS.read_bytes()
    code = reproduce(f"edit@{found}")
    if code and before != after:
        take_back_if_refused([("edits", found)], before, after)
    if code:
        fix = f"Fix the problem that it printed above, then run `dvc repro edit@{found}` or the same command again."
        raise UserError(Problem(f"dvc repro edit@{found}", f"it failed (exit code {code})", fix))
    return Path("data/edits", found, "sheet.png")


def _named(adapters: Sequence[str], params: Params) -> dict[str, float]:
    """Adapters as params.yaml names them, a file of LORAS without its folder, and their weights."""
    named = dict[str, float]()
    for text in adapters:
        name, weight = weighted(text)
        path = Path(name)
        if is_file_name(path.name) and len(path.parts) > 1 and path.parts[0] not in params.sets:
            if path.resolve().parent != LORAS.resolve():
                raise UserError(Problem(name, f"it does not lie in {LORAS}", f"Copy it there, and write {path.name}."))
            name = path.name
        if name in named:
            raise UserError(Problem(name, "it is named twice", "Name it once, with the weight that it is to have."))
        named[name] = weight
    return named


def _place(params: Params, wanted: EditSpec, key: str | None) -> tuple[str, bool]:
    """The key of the edit, and whether it is there already."""
    if key is not None and (not re.fullmatch(KEY, key) or len(key) > LONGEST_KEY):
        fix = f"Allowed: lower-case letters, digits and (not first) hyphens, {LONGEST_KEY} at most."
        raise UserError(Problem("--key", f"found {key!r}", fix))
    stem = key or slugify("-".join([wanted.set, *wanted.adapters]))[:60].strip("-")
    for number in count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        if name not in params.edits:
            return name, False
        if params.edits[name] == wanted:
            return name, True
        if key:
            raise UserError(Problem("--key", f"{key!r} exists already", "Choose another key; nothing is overwritten."))
    raise AssertionError("unreachable: there are always more numbers")
