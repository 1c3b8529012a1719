"""`dvc status`: the edit of any single key of params.yaml makes stale the stages that read it, and no others."""

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from tests.declarations import ROOT
from tests.project import tiny_params

KEYS: dict[str, Any] = YAML(typ="safe").load(tiny_params({}))
FOREACH = {
    "prepare": "sets",
    "train": "sets",
    "sample": "sets",
    "morph": "morphs",
    "evaluate": "morphs",
    "edit": "edits",
}

# What a person expects of a key; {} is the key of the set or morph. The first pattern that fits counts.
EXPECTED = {
    "machine.*": "",
    "tracking.*": "",
    "base.*": "check train@* sample@* morph@* evaluate@* edit@* report",
    "refiner.*": "check sample@* edit@*",
    "sets.*.adapter": "check train@{} report",
    "sets.*.prepare": "check prepare@{} report",
    "sets.*.train*": "check train@{} report",
    "sets.*.sample*": "check sample@{} report",
    "morphs.*.style": "check morph@{} report",
    "morphs.*.set": "check morph@{} evaluate@{} report",
    "morphs.*.keyframes": "check morph@{} report",
    "morphs.*.morph*": "check morph@{} report",
    "edits.*": "check styles edit@{} report",
    "prepare.*": "check prepare@*",
    "train.*": "check train@* report",
    "sample.*": "check sample@*",
    "morph.*": "check morph@*",
    "edit.*": "check edit@*",
    "evaluate.*": "check evaluate@*",
    "pocket.*": "check pocket",
    "controlnet.*": "check controlnet",
}


def without_files() -> dict[str, dict[str, Any]]:
    """Those of both files without their files, and not frozen: which reads what param is all that is asked here."""
    files = [ROOT / name for name in ("dvc.yaml", "models/dvc.yaml")]
    content = {
        name: stage
        for file in files
        for name, stage in YAML(typ="safe").load(file.read_text(encoding="utf-8"))["stages"].items()
    }
    for stage in content.values():
        for part in ("deps", "outs", "plots", "frozen", "wdir"):
            stage.get("do", stage).pop(part, None)
    return content


STAGES = without_files()


def leaves(section: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key that holds no other keys; `{}` is one."""
    for key, value in section.items():
        path = (*above, key)
        if isinstance(value, dict) and value:
            yield from leaves(value, path)
        else:
            yield path


def edited(path: tuple[str, ...]) -> dict[str, Any]:
    """All params, with another value at one path."""
    params = copy.deepcopy(KEYS)
    *above, last = path
    place = params
    for key in above:
        place = place[key]
    place[last] = {"added": 1} if place[last] == {} else ["another value"]
    return params


@pytest.fixture(scope="module")
def stale(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Mapping[str, Any]], set[str]]]:
    """The names of the stages that DVC calls changed when params.yaml holds the given values.

    In one process, and with all files as JSON, which YAML includes and Python reads a thousand times as fast.
    """
    import dvc.utils.serialize._yaml as dvc_yaml

    folder = tmp_path_factory.mktemp("stale")
    read_yaml = dvc_yaml.parse_yaml

    def read_json_fast(text: str, path: str, typ: str = "safe") -> Any:
        return json.loads(text) if text.startswith("{") else read_yaml(text, path, typ)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dvc_yaml, "parse_yaml", read_json_fast)
        patch.chdir(folder)
        (folder / "dvc.yaml").write_text(json.dumps({"stages": STAGES}))
        (folder / "params.yaml").write_text(json.dumps(KEYS))
        with Repo.init(str(folder), no_scm=True) as repo:
            repo.commit(force=True)  # writes dvc.lock as if all had run with these params
            lock = YAML(typ="safe").load(folder / "dvc.lock")
            (folder / "dvc.lock").write_text(json.dumps(lock))

            def status(params: Mapping[str, Any]) -> set[str]:
                (folder / "params.yaml").write_text(json.dumps(params))
                repo._reset()
                return set(repo.status())

            yield status


def expected(path: tuple[str, ...], names: set[str]) -> set[str]:
    key = ".".join(path)
    patterns = next(stages for pattern, stages in EXPECTED.items() if fnmatch(key, pattern))
    wanted = patterns.replace("{}", path[1]).split()
    return {name for name in names if any(fnmatch(name, pattern) for pattern in wanted)}


def declared(path: tuple[str, ...]) -> set[str]:
    """As dvc.yaml says it: those of whose params the key is one, or part of one."""
    found = set()
    for name, stage in STAGES.items():
        for key in KEYS[FOREACH[name]] if name in FOREACH else [""]:
            params = [param.replace("${key}", key) for param in stage.get("do", stage).get("params", ())]
            if any(f"{'.'.join(path)}.".startswith(f"{param}.") for param in params):
                found.add(f"{name}@{key}" if key else name)
    return found


def test_nothing_is_stale_at_first(stale: Callable[[Mapping[str, Any]], set[str]]) -> None:
    assert stale(KEYS) == set()


@pytest.mark.parametrize("path", list(leaves(KEYS)), ids=".".join)
def test_a_key_makes_stale_what_reads_it(stale: Callable[[Mapping[str, Any]], set[str]], path: tuple[str, ...]) -> None:
    names = {f"{name}@{key}" for name, group in FOREACH.items() for key in KEYS[group]} | {
        "check",
        "pocket",
        "controlnet",
        "styles",
        "report",
    }
    found = stale(edited(path))
    assert found == expected(path, names)
    assert found == declared(path)


def test_every_key_that_the_file_shows_is_tried() -> None:
    """Counted in the text itself: lines of two levels, `key: value` or `key:`, and what stands in braces."""
    text = tiny_params({})
    lines = re.findall(r"(?m)^  [\w-]+:(?: (?!\{)|$)", text)
    braces = [
        part for line in re.findall(r"(?m)^  [\w-]+: \{(.*)\}$", text) for part in re.findall(r"\w+: (?!\{\w)", line)
    ]
    assert len(list(leaves(KEYS))) == len(lines) + len(braces) > 100
