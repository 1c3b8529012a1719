"""The rooms of docs/architecture.md: arrows run down, there is no circle, and files stay small."""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.declarations import ROOT, imports_of

PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
# What each room may import, as the page's table has it, besides itself and what everybody may.
MAY_IMPORT: dict[str, set[str]] = {
    room: set(filter(None, imports.replace(" ", "").split(",")))
    for room, imports in re.findall(r"(?m)^\| (\w+) \| [^|`]*(?:`[^|]*)? \|(.*)\|$", PAGE.partition("## Four types")[0])
    if room != "room"
}
ANYBODYS = {"errors", "inputs", "outputs", "parallel", "params", "sections"}
OF_PARAMS = {"overrides", "validation"}
PEOPLE = {"stages", "commands", "cli", "adapter_commands", "worker_commands", "__main__"}
FILES = sorted((ROOT / "pipeline").rglob("*.py"))
ROOMS = sorted({path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py") for path in FILES} - {"__init__"})


def room_of(path: Path) -> str:
    return path.relative_to("pipeline").parts[0].removesuffix(".py")


@cache
def arrows() -> dict[str, dict[str, set[str]]]:
    """Importing room to imported rooms to the files that say so."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for file in FILES:
        path = file.relative_to(ROOT)
        for imported in imports_of(path):
            if imported != Path("pipeline/__init__.py") and room_of(imported) != room_of(path):
                found[room_of(path)][room_of(imported)].add(str(path))
    return found


def test_every_room_has_its_rule() -> None:
    assert set(ROOMS) == set(MAY_IMPORT) | ANYBODYS | OF_PARAMS | PEOPLE


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows_run_down(room: str) -> None:
    forbidden = {to: sorted(files) for to, files in arrows()[room].items() if to not in MAY_IMPORT[room] | ANYBODYS}
    assert not forbidden, f"{room} must not import {forbidden}"


def test_no_rule_is_idle_and_the_rules_have_no_circle() -> None:
    found = arrows()
    assert not {room: idle for room, allowed in MAY_IMPORT.items() if (idle := allowed - set(found[room]))}
    left = {room: set(allowed) for room, allowed in MAY_IMPORT.items()}
    while left:
        free = [room for room, allowed in left.items() if not allowed & left.keys()]
        assert free, f"a circle: {left}"
        for room in free:
            del left[room]


def test_no_module_imports_itself_through_others() -> None:
    graph = {file.relative_to(ROOT): imports_of(file.relative_to(ROOT)) for file in FILES}
    done: set[Path] = set()

    def visit(path: Path, above: tuple[Path, ...]) -> None:
        assert path not in above, f"a circle: {[str(p) for p in (*above, path)]}"
        if path not in done:
            for imported in graph[path]:
                visit(imported, (*above, path))
            done.add(path)

    for path in graph:
        visit(path, ())


@pytest.mark.parametrize(
    ("room", "knowing"),
    [
        (
            "pictures",
            {
                "edits.py",
                "stages/check.py",
                "stages/prepare.py",
                "commands/add.py",
                "commands/preview.py",
                "commands/quick.py",
                "serving/service.py",
                "studio",
            },
        ),
        ("landscapes", {"pocket/paintings.py", "pocket/sheet.py", "stages/pocket.py"}),
        ("tracking", {"stages", "commands", "cli.py"}),
    ],
)
def test_some_rooms_are_known_to_few(room: str, knowing: set[str]) -> None:
    files = {path for importing in arrows().values() for path in importing.get(room, ())}
    places = [Path("pipeline", item) for item in knowing]
    strangers = {path for path in files if not any(place in (Path(path), *Path(path).parents) for place in places)}
    assert not strangers, f"{room} is imported by {strangers}"


def test_params_yaml_is_read_by_stages_and_commands_and_logged_by_tracking() -> None:
    reading = {file.relative_to(ROOT / "pipeline").parts[0] for file in FILES if "load_params(" in file.read_text()}
    assert reading <= {"stages", "commands", "tracking", "cli.py", "params.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "pipeline")))
def test_only_bases_know_a_unet(path: Path) -> None:
    """Those that are opened, and the pocket where it is made; elsewhere it is a denoiser, whatever its kind."""
    inside = path.relative_to(ROOT / "pipeline")
    if inside.parts[0] in ("base", "pocket") or inside in (Path("stages/pocket.py"), Path("sections.py")):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not {name for name in names if "unet" in name.lower()}


@pytest.mark.parametrize("folder", ["pipeline", "tests", ".ci"])
def test_files_stay_small(folder: str) -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".html", ".css", ".js")
    }
    assert not {path: length for path, length in lengths.items() if length > 300}


def test_the_pipeline_file_stays_readable() -> None:
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_page_names_files_that_exist() -> None:
    for name in re.findall(r"`([\w./]+\.(?:py|yaml|md))`", PAGE):
        if name != "training/huber.py":
            assert (ROOT / name).is_file() or (ROOT / "pipeline" / name).is_file(), name


def test_the_pages_toy_objective_trains(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    from tests.tiny import open_tiny
    from tests.training.jobs import trained

    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    states = trained(open_tiny(tiny_folders["epsilon"]), tmp_path, objective=scope["Huber"]())
    assert all(state.step == 6 and state.tensors["weight/up"].any() for state in states.values())
