"""Entries of params.yaml: added to its sections, by one command at a time, with every other byte as it was."""

from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path

from filelock import FileLock
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from pipeline.errors import UserError
from pipeline.outputs import atomic_file
from pipeline.params import load_params

PARAMS = Path("params.yaml")


def sole_writer() -> FileLock:
    """Held while params.yaml is read, changed and written: of two commands at once one would undo what the other adds.
    Whoever has it may take it once more."""
    path = Path(".work/params.lock")
    path.parent.mkdir(exist_ok=True)
    return FileLock(path, is_singleton=True)


def add_entries(entries: Mapping[str, Mapping[str, object]], key: str) -> None:
    """Add entries by their sections and change no other byte: the file's comments and layout are the user's."""
    with sole_writer():
        _add_entries(entries, key)


def _add_entries(entries: Mapping[str, Mapping[str, object]], key: str) -> None:
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
        end, line = node.end_mark.index - 1, _in_one_line({key: entry})[1:-1]
        with_comma, without = (f"{text[:end]}{comma}{line}{text[end:]}" for comma in (", ", ""))
        return with_comma if node.value and _is_yaml(with_comma) else without  # there may be one at the end already
    newline = "\r\n" if "\r\n" in text else "\n"
    indent = " " * node.value[-1][0].start_mark.column
    lines = "".join(f"{indent}{line}{newline}" for line in _as_dvc_writes_it(key, entry))
    end = text.find("\n", _end(node)) + 1
    if not end:  # the file does not end with a newline
        return f"{text}{newline}{lines}"
    return f"{text[:end]}{lines}{text[end:]}"


def _is_yaml(text: str) -> bool:
    try:
        return bool(YAML().compose(text))
    except YAMLError:
        return False


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
