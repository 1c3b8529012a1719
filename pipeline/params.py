"""The whole of params.yaml as frozen models. Nothing else reads that file.

A set, a morph or an edit may override values of its own sections under its key; `load_params` merges them, so that
`params.sets["alps"].train` is the complete training section of that set.
"""

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationError

from pipeline.adapters.store import is_file_name
from pipeline.errors import Problem, UserError
from pipeline.inputs import BadYaml, parse_yaml, read_plain
from pipeline.overrides import is_inherited, merge_overrides
from pipeline.sections import (
    BaseSection,
    ControlNetSection,
    EditSection,
    EvaluateSection,
    MachineSection,
    MorphSection,
    PocketSection,
    PrepareSection,
    RefinerSection,
    SampleSection,
    Section,
    TrackingSection,
    TrainSection,
)
from pipeline.validation import explain_errors

MOST = 2**20
"""Bytes of the file; the shipped one has eighteen thousand."""

KEY = r"^[a-z0-9][a-z0-9-]*$"  # not first a hyphen: a command would take such a key for an option
LONGEST_KEY = 100  # letters; folders, files and runs are named by it
Key = Annotated[str, Field(pattern=KEY, max_length=LONGEST_KEY)]
NONE = "none"
"""No set: what DVC takes for the adapters of this style is an empty folder that ships."""
# A set, a set and a picture, or a file.
ADAPTER = r"^([a-z0-9][a-z0-9-]*(/[^/\\\x00-\x1f]+)?|[^/\\.\x00-\x1f][^/\\\x00-\x1f]*\.safetensors)$"
AdapterName = Annotated[str, Field(pattern=ADAPTER, max_length=400)]

Entry = TypeVar("Entry")


class SetSpec(Section):
    """One set: how many adapters it gives, and its sections with its own overrides merged in."""

    SECTIONS: ClassVar[tuple[str, ...]] = ("prepare", "train", "sample")

    adapter: Literal["image", "set"]
    prepare: PrepareSection
    train: TrainSection
    sample: SampleSection


class MorphSpec(Section):
    """One morph: the keyframes (file names in its set) in order, a set whose adapter is laid over all frames (or NONE),
    and its section with overrides merged in."""

    SECTIONS: ClassVar[tuple[str, ...]] = ("morph",)

    set: Key
    style: Key
    keyframes: tuple[Annotated[str, Field(min_length=1)], ...] = Field(strict=False, min_length=2)
    morph: MorphSection


class EditSpec(Section):
    """One edit: the set whose pictures are changed, adapters (`set`, or `set/picture`) with their weights, and its
    section with overrides merged in."""

    SECTIONS: ClassVar[tuple[str, ...]] = ("edit",)

    set: Key
    adapters: dict[AdapterName, Annotated[float, Field(ge=-4, le=4)]] = Field(max_length=16)
    edit: EditSection


class Params(Section):
    """All of params.yaml."""

    base: BaseSection
    refiner: RefinerSection
    sets: dict[Key, SetSpec] = Field(min_length=1)
    morphs: dict[Key, MorphSpec]
    edits: dict[Key, EditSpec]
    prepare: PrepareSection
    train: TrainSection
    sample: SampleSection
    morph: MorphSection
    edit: EditSection
    evaluate: EvaluateSection
    pocket: PocketSection
    controlnet: ControlNetSection
    machine: MachineSection
    tracking: TrackingSection

    def get_set(self, key: str) -> SetSpec:
        """The set of that key. Raises UserError when there is none."""
        return _entry("sets", self.sets, key)

    def get_morph(self, key: str) -> MorphSpec:
        """The morph of that key. Raises UserError when there is none."""
        return _entry("morphs", self.morphs, key)

    def get_edit(self, key: str) -> EditSpec:
        """The edit of that key. Raises UserError when there is none."""
        return _entry("edits", self.edits, key)


def slugify(text: str) -> str:
    """Lower-case letters, digits and single hyphens: "Großer See (2)" gives "grosser-see-2"."""
    ascii_text = unicodedata.normalize("NFKD", text.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")


def _entry(group: str, entries: Mapping[str, Entry], key: str) -> Entry:
    if key not in entries:
        there = ", ".join(sorted(entries)) or "none yet"
        raise UserError(Problem(f"params.yaml: {group}", f"there is no {key!r}", f"There are: {there}."))
    return entries[key]


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and validate params.yaml.

    Raises:
        UserError: with one problem for each mistake: the key's path, what was found and what it should be.
    """
    raw = _read_yaml(path)
    groups = {"sets": SetSpec.SECTIONS, "morphs": MorphSpec.SECTIONS, "edits": EditSpec.SECTIONS}
    overrides = merge_overrides(raw, groups, path)
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        written = [detail for detail in error.errors(include_url=False) if not is_inherited(detail["loc"], overrides)]
        raise UserError(*explain_errors(written, Params, path)) from None
    fix = f"Choose one of {', '.join(sorted(params.sets))}, or add it under `sets`."
    named = {f"morphs.{key}.set": morph.set for key, morph in params.morphs.items()}
    named |= {f"morphs.{key}.style": morph.style for key, morph in params.morphs.items() if morph.style != NONE}
    for key, edit in params.edits.items():
        named |= {f"edits.{key}.set": edit.set}
        named |= {
            f"edits.{key}.adapters: {name}": name.partition("/")[0] for name in edit.adapters if not is_file_name(name)
        }
    problems = [
        Problem(f"{path}: {where}", f"there is no set {key!r}", fix)
        for where, key in named.items()
        if key not in params.sets
    ]
    if NONE in params.sets:
        problems.append(Problem(f"{path}: sets.{NONE}", "it stands for no set at all", "Choose another key."))
    if problems:
        raise UserError(*problems)
    return params


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = parse_yaml(read_plain(path, MOST).decode("utf-8"))
    except FileNotFoundError:
        problem = Problem(str(path), "the file is missing", "Run morphline at the top of the repository.")
    except OSError as error:
        problem = Problem(str(path), f"the file cannot be read ({error.strerror})", "Restore the file from Git.")
    except UnicodeDecodeError:
        problem = Problem(str(path), "the file is not UTF-8 text", "Save it as UTF-8.")
    except BadYaml as error:
        where = f"{path}:{error.line}" if error.line else str(path)
        problem = Problem(where, str(error), "Correct that line; indentation is by spaces.")
    else:
        if isinstance(raw, dict):
            return raw
        problem = Problem(str(path), "no mapping of sections at the top", "Restore the file from Git.")
    raise UserError(problem)
