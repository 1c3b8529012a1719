"""`morphline ci-report`: what a change did to the pipeline, as one page of Markdown for a pull request.

It compares the workspace, after `dvc repro`, with a Git revision: which stages ran, which params and figures changed,
and the strips before and now. It needs Git and DVC's cache, and neither GitHub nor a network.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.ci.changes import Change, changes, flatten, steps_differ
from pipeline.ci.markdown import figures_part, inert, params_part, stages_part, strips_part
from pipeline.errors import Problem, UserError
from pipeline.inputs import parse_json, parse_yaml, read_plain
from pipeline.outputs import atomic_file, naming, of_the_machine, reading
from pipeline.params import KEY
from pipeline.report.figures import is_foreign

MARK = "<!-- morphline ci-report -->"
"""The first line of every report, by which its comment is found again."""


MOST_VALUES = 1_000_000
"""In a dvc.lock: a stage has some hundred."""


def run(base: str, out: Path, pictures: Path, url: str | None) -> None:
    """Write the report to `out`, and the strips it shows to the folder `pictures`.

    base: a Git revision. url: where readers of the report can see that folder; None: the report names files.

    Raises:
        UserError: when there is no such revision, no dvc.lock of the present state, or something else at `out`.
    """
    with suppress(FileNotFoundError), naming(out):
        if (there := out.read_bytes()) and not there.startswith(MARK.encode()):
            raise UserError(Problem(str(out), "it is there, and no report of this command", "Use another name."))
    _git("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}", problem=f"there is no revision {base!r}")
    if not Path("dvc.lock").is_file():
        raise UserError(Problem("dvc.lock", "there is none", "Run `dvc repro` first."))
    before = _stages(_read_at(base, "dvc.lock"), f"dvc.lock at {base}")
    now = _stages(_read_here("dvc.lock"), "dvc.lock")
    params = changes(
        _mapping(_read_at(base, "params.yaml"), f"params.yaml at {base}"),
        _mapping(_read_here("params.yaml"), "params.yaml"),
    )
    metrics = {name: _metrics(base, name) for name in _metrics_files(base)}
    figures = [change for name, both in metrics.items() for change in _metrics_changes(name, *both)]
    foreign = [Path(name).stem for name, both in metrics.items() if any(map(_is_foreign, both))]
    found = (name.removeprefix("morph@") for name in now if name.startswith("morph@"))
    morphs = sorted(key for key in found if re.match(KEY, key))  # their names become names of files and addresses
    strips = {morph: write_strips(base, morph, pictures) for morph in morphs}
    commit, _, subject = _git("log", "-1", "--format=%h %s", base).strip().partition(" ")
    parts = (
        MARK,
        f"## What this change does to the pipeline\n\ncompared with `{commit}` ({inert(subject)})",
        stages_part(before, now),
        params_part(params),
        figures_part(figures, steps_differ(params), foreign),
        strips_part(strips, url),
    )
    with atomic_file(out) as partial:
        partial.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def write_strips(base: str, morph: str, pictures: Path) -> dict[str, str | None] | None:
    """Write the strips of a morph, before and now, as WebP files into `pictures`.

    Returns their names, None for one that is not there; or None where the two are the same.
    """
    path = f"data/morphs/{morph}/strip.png"
    now, before = Path(path), pictures / f"{morph}-before.png"
    with naming(before):
        pictures.mkdir(parents=True, exist_ok=True)
        found = {"before": _fetch(base, path, before), "now": now.is_file()}
    if all(found.values()) and before.read_bytes() == now.read_bytes():
        before.unlink()
        return None
    names: dict[str, str | None] = {}
    for when, source in (("before", before), ("now", now)):
        names[when] = f"{morph}-{when}.webp" if found[when] else None
        if found[when]:
            with reading(source), Image.open(source) as opened:
                picture = opened.copy()
            with atomic_file(pictures / f"{morph}-{when}.webp") as partial:
                picture.save(partial, quality=85)
    before.unlink(missing_ok=True)
    return names


def _fetch(base: str, path: str, target: Path) -> bool:
    """Copy a file of another revision from DVC's cache or remote; whether it was there."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexDirError

    try:
        DVCFileSystem(rev=base).get_file(path, str(target))
    except (DvcException, DataIndexDirError, OSError) as error:
        target.unlink(missing_ok=True)
        if machine := of_the_machine(error):  # a full disk does not mean that the strip was not there
            raise machine from error
        return False
    return target.is_file()


def _metrics_files(base: str) -> list[str]:
    """The metrics file of every morph, before or now."""
    now = {path.as_posix() for path in Path("reports/metrics").glob("*.json")}
    before = _git("ls-tree", "--name-only", base, "reports/metrics/").split("\n")
    return sorted(now | {name for name in before if name.endswith(".json")})


def _metrics(base: str, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of a metrics file, before and now; empty where it is absent."""
    before = _mapping(_read_at(base, name), f"{name} at {base}")
    return before, _mapping(_read_here(name), name) if os.path.lexists(name) else {}


def _is_foreign(metrics: Mapping[str, Any]) -> bool:
    figures = dict(flatten(metrics))
    return "morph.naturalness" in figures and is_foreign(figures.get("morph.keyframes_strangeness"))


def _metrics_changes(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    morph = Path(name).stem
    return [Change(f"{morph}.{change.key}", change.before, change.now) for change in changes(before, now)]


def _read_here(name: str) -> str:
    """A file of the checkout itself: a link could carry any file of this machine into the report."""
    if Path(name).is_symlink():
        raise UserError(Problem(name, "it is a link", "Put the file itself there, or run `dvc repro`."))
    try:
        return read_plain(Path(name)).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(_unreadable(name, "it is not UTF-8 text")) from None


def _read_at(base: str, path: str) -> str:
    """A file as it is in a revision; empty where it is absent."""
    done = subprocess.run(
        ["git", "show", f"{base}:{path}"], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    return done.stdout if done.returncode == 0 else ""


def _git(*arguments: str, problem: str | None = None) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", errors="replace", check=False)
    except FileNotFoundError:
        raise UserError(Problem("git", "it is not installed", "Install Git, which knows the state before.")) from None
    if done.returncode:
        found = problem or (done.stderr.strip().splitlines() or ["git failed"])[-1]
        raise UserError(Problem("--base", found, "Name a commit, branch or tag that is in this clone."))
    return done.stdout


def _stages(text: str, where: str) -> dict[str, Any]:
    """The stages of a dvc.lock, each a mapping."""
    stages = _mapping(text, where).get("stages", {})
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        raise UserError(_unreadable(where, "`stages` is no mapping of stages"))
    return stages


def _mapping(text: str, where: str) -> dict[str, Any]:
    """The content of a YAML or JSON text; none for an empty one."""
    try:
        if not text.strip():
            return {}
        content = parse_json(text) if ".json" in where else parse_yaml(text, nodes=MOST_VALUES)
    except ValueError as error:
        line = getattr(error, "line", None)
        raise UserError(_unreadable(f"{where}:{line}" if line else where, str(error))) from None
    if not isinstance(content, dict):
        raise UserError(_unreadable(where, "no mapping at the top"))
    return {str(key): value for key, value in content.items()}


def _unreadable(where: str, found: str) -> Problem:
    return Problem(where, found, "Run `dvc repro`, which writes it, or restore it from Git.")
