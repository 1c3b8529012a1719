"""params.yaml of any content: each mistake is a problem with its place, in seconds and megabytes."""

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline.base.checking import find_base_problems
from pipeline.errors import UserError
from pipeline.inputs import BadYaml, parse_yaml
from pipeline.params import load_params
from pipeline.sections import BaseSection
from tests.hostile.generators import changed_value, hostile, is_plain
from tests.project import SHIPPED

VALUES: dict[str, Any] = YAML(typ="safe").load(SHIPPED)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefghij", "bcdefghijk", strict=True)
)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_params(path)
    assert len(str(error.value)) < 100_000
    return str(error.value)


@hostile(300)
@given(values=changed_value(VALUES))
def test_any_value_anywhere_is_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, values: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")
    try:
        load_params(path)
    except UserError as error:
        assert all(map(is_plain, str(error).split("\n")))


@hostile(250)
@given(
    place=st.integers(0, len(SHIPPED)),
    text=st.text(max_size=12) | st.sampled_from(["!!int ''", "*a", "&a ", "2024-99-99", "? ", "0x" + "f" * 9000, "- "]),
    whole=st.booleans(),
)
def test_any_text_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, text: str, whole: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    content = SHIPPED[:place] + text + SHIPPED[place:] if whole else text
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    try:
        load_params(path)
    except UserError as error:
        assert all(map(is_plain, str(error).split("\n")))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 3000, "params.yaml:1: more than 50 brackets"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(90)), "params.yaml:50: more than 50 brackets"),
        (BOMB, "params.yaml:5: more than 50000 values, aliases counted"),
        ("a: &a [*a]", "params.yaml:1: the alias *a names nothing before it"),
        ("- a\n" * 250_000, "params.yaml:50000: more than 50000 values"),
        ("a: " + "x" * 2**21, "the file cannot be read (larger than 1 MB)"),
        ("a: " + "9" * 5000, "params.yaml:1: a number of 5000 digits"),
        ("a: 2024-99-99", "a value that cannot be read (ValueError: month"),
        ('a: "\\0"', "params.yaml:1: a control character"),
        ("a: !!python/object/apply:os.system [ls]", "params.yaml:1: not valid YAML"),
        (SHIPPED.replace("attention: []", "attention: [side]"), "morph.attention.0: found 'side'. It should be 'down'"),
        (SHIPPED.replace("steps: 20", f"steps: 0x{'f' * 9000}"), "train.steps: found a number of 36000 bits"),
        (SHIPPED.replace("woodcut:", "w" * 101 + ":"), "have at most 100 characters"),
    ],
)
def test_what_takes_minutes_elsewhere_is_refused_at_once(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    started, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert said in refused(path)
    assert time.monotonic() - started < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # kB


def test_params_are_a_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.mkdir()
    assert "(a folder, not a file)" in refused(path)
    path.rmdir()
    path.symlink_to(path)
    assert "symbolic links" in refused(path)
    path.unlink()
    os.mkfifo(path)
    assert "(a pipe, not a file)" in refused(path)


def test_an_alias_counts_as_what_it_stands_for() -> None:
    assert parse_yaml("a: &a [1, 2]\nb: [*a, *a]", nodes=20) == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    # 3 of the first list, 1 and 3 and 3 of the second, 2 keys, and the mapping: 13.
    assert parse_yaml("a: &a [1, 2]\nb: [*a, *a]", nodes=13)
    with pytest.raises(BadYaml, match="more than 11 values"):
        parse_yaml("a: &a [1, 2]\nb: [*a, *a]", nodes=11)


@hostile(300)
@given(
    source=st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)
    | st.sampled_from(["x" * 300, "/dev/zero", "/dev/zero/a", "..", "a.safetensors", "../b", "/" + "a/" * 2000]),
    revision=st.none() | st.just("0" * 39) | st.text(max_size=4),
    config=st.none() | st.sampled_from(["x" * 300, "/dev/null", ".", "/proc/self/mem"]),
)
def test_any_base_is_found_or_refused(source: str, revision: str | None, config: str | None) -> None:
    section = BaseSection(source=source, revision=revision, config=config, dtype="float32", clip_skip=0, adapters=())
    assert find_base_problems(section)
