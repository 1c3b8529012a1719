"""`morphline add`: make a set and a morph of the user's own pictures."""

import json
import re
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from pipeline.errors import Problem, UserError
from pipeline.outputs import atomic_file, atomic_folder
from pipeline.params import KEY, load_params
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
    if not re.fullmatch(KEY, key):
        fix = "Allowed: lower-case letters, digits and (not first) hyphens."
        problems.append(Problem("KEY", f"found {key!r}", fix))
    elif key in taken or (RAW / key).exists():
        problems.append(Problem("KEY", f"{key!r} exists already", "Choose another key; nothing is overwritten."))
    if len(pictures) < 2:
        problems.append(Problem("PICTURES", f"{len(pictures)} given", "A morph needs two or more."))
    if len(captions) != len(pictures):
        found = f"{len(captions)} captions for {len(pictures)} pictures"
        problems.append(Problem("--caption", found, "Give one for each picture, in the same order."))
    problems += [
        Problem(str(path), "there is no such file", "Correct the path.") for path in pictures if not path.is_file()
    ]
    names = [_file_name(path) for path in pictures]
    stems = [Path(name).stem.casefold() for name in names]
    problems += [
        Problem(str(path), f"two pictures would both be called {stem!r}", "Rename one of them.")
        for path, stem in zip(pictures, stems, strict=True)
        if stems.count(stem) > 1
    ]
    return problems


def _file_name(path: Path) -> str:
    """The name in the set: the user's, in Unicode's composed form (NFC), because file systems differ in that."""
    return unicodedata.normalize("NFC", path.name)


def _without_folder(problem: Problem, folder: Path) -> Problem:
    return Problem(problem.where.replace(f"{folder}/", ""), problem.found, problem.fix)


def _add_to_params(key: str, names: Sequence[str]) -> None:
    """Add two entries and change no other byte: the file's comments and layout are the user's."""
    text = PARAMS.read_bytes().decode("utf-8")
    entry = {"adapter": "image", "prepare": {}, "train": {}, "sample": {}}
    text = _with_entry(text, "sets", key, entry)
    text = _with_entry(text, "morphs", key, {"set": key, "keyframes": list(names), "morph": {}})
    with atomic_file(PARAMS) as path:
        path.write_bytes(text.encode("utf-8"))
        load_params(path)


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
