"""What a stage really imports and which params it really reads, from its source alone."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECTIONS = ("base", "refiner", "prepare", "train", "sample", "morph", "edit", "evaluate", "pocket", "controlnet")
MERGED = {"sets": ("prepare", "train", "sample"), "morphs": ("morph",), "edits": ("edit",)}
# By the design: cli, params, state and tracking cannot change a stage's bytes; errors only say why there are none,
# inputs give a file's bytes or none, outputs and parallel put what a stage makes in its place as it is, and
# previews of a training leave no trace in it (tests/training/test_loop.py).
EXEMPT = (
    "pipeline/__init__.py", "pipeline/cli.py", "pipeline/errors.py", "pipeline/inputs.py", "pipeline/outputs.py",
    "pipeline/overrides.py", "pipeline/parallel.py", "pipeline/params.py", "pipeline/previews.py",
    "pipeline/sections.py", "pipeline/state.py", "pipeline/tracking", "pipeline/validation.py",
)  # fmt: skip


def module_file(name: str) -> Path | None:
    """The file of a project module, or None when it is another project's."""
    path = Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate
    return None


def exempt(file: Path) -> bool:
    return any(file == Path(item) or Path(item) in file.parents for item in EXEMPT)


@cache
def imports_of(file: Path) -> set[Path]:
    """Project files that `file` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {path for name in names if name.startswith("pipeline") and (path := module_file(name))}
    return found


def all_imports(file: Path) -> set[Path]:
    """Project files that can change what a stage makes: itself and, through them all, what it imports."""
    seen: set[Path] = set()
    queue = [file]
    while queue:
        current = queue.pop()
        if current not in seen and not exempt(current):
            seen.add(current)
            queue += imports_of(current)
    return {path for path in seen if (ROOT / path).read_text(encoding="utf-8").strip()}


def params_read(file: Path) -> set[str]:
    """Keys of params.yaml that a stage reads, as it declares them: `train`, `sets.${key}.train`, `morphs.${key}.set`.

    Stages read `params.<section>`, and `spec.<field>` of `params.get_set(key)` and its like; a section of
    a spec is merged from the shared section and the entry's own.
    """
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    group = {"get_set": "sets", "get_morph": "morphs", "get_edit": "edits"}
    groups = {group[n.attr] for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in group}
    keys: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params":
            if node.attr in (*SECTIONS, *MERGED):
                keys.add(node.attr)
        elif isinstance(node, ast.Attribute) and _is_spec(node.value):
            if not groups:
                continue  # of all entries of a group, which is read whole
            (name,) = groups
            field = node.attr
            if field == "model_dump":
                keys |= {f"{name}.${{key}}", *MERGED[name]}
                continue
            keys.add(f"{name}.${{key}}.{field}")
            if field in SECTIONS:
                keys.add(field)
    return keys


def _is_spec(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id == "spec"
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("get_set", "get_morph")
    )
