"""`morphline add`: make a set and a morph of the user's own pictures."""

import json
import os
import re
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from pipeline.errors import Problem, UserError
from pipeline.outputs import atomic_file, atomic_folder
from pipeline.params import KEY, LONGEST_KEY, load_params
from pipeline.pictures.imagefolder import find_problems

RAW = Path("data/raw")
PARAMS = Path("params.yaml")


def run(key: str, pictures: Sequence[Path], captions: Sequence[str]) -> None:
    """Copy the pictures to data/raw/<key>/ with a metadata.jsonl, and add the set and the morph to params.yaml.

    Raises:
        UserError: with every problem found; then nothing is made, and nothing is ever overwritten.
    """
    params = load_params(PARAMS)
    problems = _problems(key, pictures, captions, {*params.sets, *params.morphs})
    if problems:
        raise UserError(*problems)
    names = [_file_name(picture) for picture in pictures]
    with atomic_folder(RAW / key) as folder:
        for picture, name in zip(pictures, names, strict=True):
            shutil.copyfile(picture, folder / name)
        rows = [{"file_name": name, "text": text.strip()} for name, text in zip(names, captions, strict=True)]
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        found = find_problems(folder, max_megapixels=params.prepare.max_megapixels)
        if found:
            raise UserError(*(_without_folder(problem, folder) for problem in found))
        _add_to_params(key, names)
    print(f"Added the set and the morph {key!r}. `dvc repro` makes the clip: data/morphs/{key}/morph.mp4")


def _problems(key: str, pictures: Sequence[Path], captions: Sequence[str], taken: set[str]) -> list[Problem]:
    problems = []
    if not re.fullmatch(KEY, key) or len(key) > LONGEST_KEY:
        fix = f"Allowed: lower-case letters, digits and (not first) hyphens, {LONGEST_KEY} at most."
        problems.append(Problem("KEY", f"found {key!r}", fix))
    elif key in taken or os.path.lexists(RAW / key):
        problems.append(Problem("KEY", f"{key!r} exists already", "Choose another key; nothing is overwritten."))
    if len(pictures) < 2:
        problems.append(Problem("PICTURES", f"{len(pictures)} given", "A morph needs two or more."))
    if len(captions) != len(pictures):
        found = f"{len(captions)} captions for {len(pictures)} pictures"
        problems.append(Problem("--caption", found, "Give one for each picture, in the same order."))
    problems += [
        Problem("--caption", f"{caption!r} is not UTF-8", "Write it in a terminal whose encoding is UTF-8.")
        for caption in captions
        if not _is_text(caption)
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


def _add_to_params(key: str, names: Sequence[str]) -> None:
    """Add two lines and change no other byte: the file's comments and layout are the user's."""
    text = PARAMS.read_bytes().decode("utf-8")
    entry = {"adapter": "image", "prepare": {}, "train": {}, "sample": {}}
    text = _with_entry(text, "sets", key, entry)
    text = _with_entry(text, "morphs", key, {"set": key, "keyframes": list(names), "morph": {}})
    with atomic_file(PARAMS) as path:
        path.write_bytes(text.encode("utf-8"))
        load_params(path)


def _with_entry(text: str, section: str, key: str, entry: Mapping[str, object]) -> str:
    """The YAML text with one more entry, in flow style, at the end of a section."""
    sections = {name.value: node for name, node in YAML().compose(text).value}
    node = sections[section]
    line = _in_flow_style({key: entry})[1:-1]
    if node.flow_style:  # `morphs: {}`
        end = node.end_mark.index - 1
        return f"{text[:end]}{', ' if node.value else ''}{line}{text[end:]}"
    newline = "\r\n" if "\r\n" in text else "\n"
    indent = " " * node.value[-1][0].start_mark.column
    end = text.find("\n", _end(node)) + 1
    if not end:  # the file does not end with a newline
        return f"{text}{newline}{indent}{line}{newline}"
    return f"{text[:end]}{indent}{line}{newline}{text[end:]}"


def _end(node: Node) -> int:
    """Where a node's content ends. A block's own end mark lies after the comments that follow it."""
    if isinstance(node, MappingNode) and node.value and not node.flow_style:
        name, value = node.value[-1]
        return max(name.end_mark.index, _end(value))
    if isinstance(node, SequenceNode) and node.value and not node.flow_style:
        return _end(node.value[-1])
    return int(node.end_mark.index)


def _in_flow_style(value: object) -> str:
    yaml = YAML()
    yaml.default_flow_style = True
    yaml.width = 1_000_000
    text = StringIO()
    yaml.dump(value, text)
    return text.getvalue().strip()
