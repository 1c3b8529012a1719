"""`morphline add`: make a set and a morph of the user's own pictures."""

import json
import os
import re
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Literal

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from pipeline.errors import Problem, UserError
from pipeline.outputs import atomic_file, atomic_folder
from pipeline.overrides import overridden, parse_settings
from pipeline.params import KEY, LONGEST_KEY, NONE, MorphSpec, Params, SetSpec, load_params
from pipeline.pictures.imagefolder import find_problems

RAW = Path("data/raw")
PARAMS = Path("params.yaml")
SECTIONS = (*SetSpec.SECTIONS, *MorphSpec.SECTIONS)
"""Those of params.yaml that a set and its morph may override."""
_SHARE = r"\s*(?:0?\.\d+|0\.?|1(?:\.0*)?)\s*"
FOCUS = re.compile(rf"{_SHARE},{_SHARE}")


@dataclass(frozen=True)
class Extras:
    """What a set and a morph may have besides pictures and captions.

    focuses: "X,Y" for each picture, one for all, or none; an empty one is none. settings: values that override those of
    params.yaml, by section (`SECTIONS`) and name. style: the set in whose style the morph is.
    """

    focuses: Sequence[str] = ()
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    style: str = NONE

    def of_section(self, section: str) -> Mapping[str, object]:
        """The values that override those of a section."""
        return self.settings.get(section, {})


def extras_of(focuses: Sequence[str] | None, settings: Sequence[str] | None, style: str | None = None) -> Extras:
    """The extras out of the options of a command.

    Raises:
        UserError: for a setting that is none.
    """
    return Extras(focuses or (), parse_settings(settings or (), SECTIONS), style or NONE)


def run(
    key: str,
    pictures: Sequence[Path],
    captions: Sequence[str],
    extras: Extras | None = None,
    adapter: Literal["image", "set"] = "image",
) -> None:
    """Copy the pictures to data/raw/<key>/ with a metadata.jsonl, and add the set and the morph to params.yaml.

    captions: one for each picture, one for all, or none. adapter: "set" for a style: one adapter for all, and no morph.

    Raises:
        UserError: with every problem found; then nothing is made, and nothing is ever overwritten.
    """
    params, extras = load_params(PARAMS), extras or Extras()
    problems = _key_problems(key, {*params.sets, *params.morphs})
    problems += find_mistakes(pictures, captions, extras.focuses, least=1 if adapter == "set" else 2)
    problems += extras_problems(params, extras)
    if problems:
        raise UserError(*problems)
    captions = one_for_each(pictures, captions)
    focuses = focus_for_each(pictures, extras.focuses)
    names = [_file_name(picture) for picture in pictures]
    with atomic_folder(RAW / key) as folder:
        for picture, name in zip(pictures, names, strict=True):
            shutil.copyfile(picture, folder / name)
        rows = [
            {"file_name": name, "text": text, **({"focus": focus} if focus else {})}
            for name, text, focus in zip(names, captions, focuses, strict=True)
        ]
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        found = find_problems(folder, max_megapixels=params.prepare.max_megapixels)
        if found:
            raise UserError(*(_without_folder(problem, folder) for problem in found))
        add_entries(
            {
                "sets": {"adapter": adapter, **{name: dict(extras.of_section(name)) for name in SetSpec.SECTIONS}},
                **({"morphs": _morph_entry(key, names, extras)} if adapter == "image" else {}),
            },
            key,
        )
    if adapter == "set":
        print(f"Added the set {key!r}. `morphline restyle SET {key}` lays its style over another set's pictures.")
    else:
        print(f"Added the set and the morph {key!r}.")


def add_morph(key: str, of: str, pictures: Sequence[Path], extras: Extras) -> None:
    """Add one more morph through pictures of a set that is there, with other settings."""
    add_entries({"morphs": _morph_entry(of, [_file_name(picture) for picture in pictures], extras)}, key)


def one_for_each(pictures: Sequence[Path], captions: Sequence[str]) -> list[str]:
    """The caption of each picture, of one for each, one for all, or none: then empty."""
    given = captions if len(captions) > 1 else [*captions, ""][:1] * len(pictures)
    return [caption.strip() or caption for caption in given]  # what is only blanks is refused with the set


def focus_for_each(pictures: Sequence[Path], focuses: Sequence[str]) -> list[list[float] | None]:
    """The point of each picture that its crop centres on; None: its middle."""
    given = focuses if len(focuses) > 1 else [*focuses, ""][:1] * len(pictures)
    return [[float(part) for part in text.split(",")] if text.strip() else None for text in given]


def extras_problems(params: Params, extras: Extras) -> list[Problem]:
    """What is wrong with the values that override those of params.yaml, and with the style."""
    problems: list[Problem] = []
    if extras.style != NONE and (extras.style not in params.sets or params.sets[extras.style].adapter != "set"):
        styles = ", ".join(key for key, spec in params.sets.items() if spec.adapter == "set") or "none yet"
        found = f"{extras.style!r} is no set with one adapter for all"
        problems.append(Problem("--style", found, f"Choose from: {styles}."))
    for name, values in extras.settings.items():
        try:
            overridden(getattr(params, name), name, values)
        except UserError as error:
            problems += error.problems
    return problems


def _key_problems(key: str, taken: set[str]) -> list[Problem]:
    if not re.fullmatch(KEY, key) or len(key) > LONGEST_KEY:
        fix = f"Allowed: lower-case letters, digits and (not first) hyphens, {LONGEST_KEY} at most."
        return [Problem("KEY", f"found {key!r}", fix)]
    if key in taken or os.path.lexists(RAW / key):
        return [Problem("KEY", f"{key!r} exists already", "Choose another key; nothing is overwritten.")]
    return []


def find_mistakes(
    pictures: Sequence[Path], captions: Sequence[str], focuses: Sequence[str] = (), least: int = 2
) -> list[Problem]:
    """What is wrong with the pictures, captions and focuses of a command, before any picture is opened."""
    problems = []
    if len(pictures) < least:
        problems.append(Problem("PICTURES", f"{len(pictures)} given", "A morph needs two or more."))
    for option, given, of in (("--caption", captions, "captions"), ("--focus", focuses, "points")):
        if len(given) not in (0, 1, len(pictures)):
            found = f"{len(given)} {of} for {len(pictures)} pictures"
            problems.append(Problem(option, found, "Give one for each, in the same order, one for all, or none."))
    problems += [
        Problem("--caption", f"{caption!r} is not UTF-8", "Write it in a terminal whose encoding is UTF-8.")
        for caption in captions
        if not _is_text(caption)
    ]
    problems += [
        Problem("--focus", f"found {text!r}", "Write X,Y: 0,0 is left and top, 1,1 right and bottom; empty for none.")
        for text in focuses
        if text.strip() and not FOCUS.fullmatch(text)
    ]
    problems += [_missing(path) for path in pictures if not os.path.isfile(path)]
    problems += pipe_problems(RAW)
    names = [_file_name(path) for path in pictures]
    stems = [Path(name).stem.casefold() for name in names]
    problems += [
        Problem(str(path), f"two pictures would both be called {stem!r}", "Rename one of them.")
        for path, stem in zip(pictures, stems, strict=True)
        if stems.count(stem) > 1
    ]
    return problems


def pipe_problems(folder: Path) -> list[Problem]:
    """What is neither file nor folder below one that DVC reads: for a pipe it waits without a word and for ever."""
    found = []
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            if path.exists() and not path.is_file():
                fix = "Remove it: DVC would wait for it for ever."
                found.append(Problem(str(path), "a pipe, a socket or a device, not a file", fix))
    return found


def _missing(path: Path) -> Problem:
    if os.path.exists(path):
        return Problem(str(path), "a folder, a pipe or a device, not a file", "Name a picture.")
    return Problem(str(path), "there is no such file", "Correct the path.")


def _is_text(text: str) -> bool:
    """Bytes that are no UTF-8 come from a command line as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _file_name(path: Path) -> str:
    """The name in the set: the user's, in Unicode's composed form (NFC), because file systems differ in that."""
    return unicodedata.normalize("NFC", path.name)


def _without_folder(problem: Problem, folder: Path) -> Problem:
    return Problem(problem.where.replace(f"{folder}/", ""), problem.found, problem.fix)


def _morph_entry(of: str, names: Sequence[str], extras: Extras) -> dict[str, object]:
    return {"set": of, "style": extras.style, "keyframes": list(names), "morph": dict(extras.of_section("morph"))}


def add_entries(entries: Mapping[str, Mapping[str, object]], key: str) -> None:
    """Add entries by their sections and change no other byte: the file's comments and layout are the user's."""
    text = PARAMS.read_bytes().decode("utf-8")
    for section, entry in entries.items():
        text = _with_entry(text, section, key, entry)
    with atomic_file(PARAMS) as path:
        path.write_bytes(text.encode("utf-8"))
        try:
            load_params(path)
        except UserError as error:  # of a file that nobody has seen
            named = (replace(one, where=one.where.replace(str(path), str(PARAMS))) for one in error.problems)
            raise UserError(*named) from None


def _with_entry(text: str, section: str, key: str, entry: Mapping[str, object]) -> str:
    """The YAML text with one more entry at the end of a section."""
    sections = {name.value: node for name, node in YAML().compose(text).value}
    node = sections[section]
    if node.flow_style:  # `morphs: {}`
        end = node.end_mark.index - 1
        return f"{text[:end]}{', ' if node.value else ''}{_in_one_line({key: entry})[1:-1]}{text[end:]}"
    newline = "\r\n" if "\r\n" in text else "\n"
    indent = " " * node.value[-1][0].start_mark.column
    lines = "".join(f"{indent}{line}{newline}" for line in _as_dvc_writes_it(key, entry))
    end = text.find("\n", _end(node)) + 1
    if not end:  # the file does not end with a newline
        return f"{text}{newline}{lines}"
    return f"{text[:end]}{lines}{text[end:]}"


def _end(node: Node) -> int:
    """Where a node's content ends. A block's own end mark lies after the comments that follow it."""
    if isinstance(node, MappingNode) and node.value and not node.flow_style:
        name, value = node.value[-1]
        return max(name.end_mark.index, _end(value))
    if isinstance(node, SequenceNode) and node.value and not node.flow_style:
        return _end(node.value[-1])
    return int(node.end_mark.index)


def _in_one_line(value: object) -> str:
    yaml = YAML()
    yaml.default_flow_style = True
    yaml.width = 1_000_000
    text = StringIO()
    yaml.dump(value, text)
    return text.getvalue().strip()


def _as_dvc_writes_it(key: str, entry: Mapping[str, object]) -> list[str]:
    """The entry's lines, as `dvc exp run -S` writes them: one, or a line for each value where one would be long."""
    for flow in (True, False):
        mapping = CommentedMap(entry)
        if flow:
            mapping.fa.set_flow_style()
        text = StringIO()
        YAML().dump({"section": {key: mapping}}, text)
        lines = [line.removeprefix("  ") for line in text.getvalue().splitlines()[1:]]
        if len(lines) == 1:
            break
    return lines
