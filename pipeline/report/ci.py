"""`morphline ci-report`: what a change did to the pipeline, as one page of Markdown for a pull request.

It compares the workspace, after `dvc repro`, with a Git revision: which stages ran, which params and figures changed,
and the strips before and after. It needs Git and DVC's cache, and neither GitHub nor a network.
"""

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from json import loads
from pathlib import Path
from typing import Any

from PIL import Image
from ruamel.yaml import YAML

from pipeline.errors import Problem, UserError

MARK = "<!-- morphline ci-report -->"
"""The first line of every report, by which a comment is found again."""

# Which way is better, by the end of a figure's name. The others are told without a verdict.
LOWER = (
    "neighbours_variance", "neighbours_std", "neighbours_max_over_mean", "perceptual", "psnr_gap", "directness", "loss",
    "ppl", "pdv", "naturalness",
)  # fmt: skip
HIGHER = ("_psnr", "_ssim")
# The floor is what the autoencoder alone can do: no merit of the morph.
FLOOR = "_floor_"
# More frames make shorter steps, other keyframes another way: such steps cannot be held against the ones of before.
STEPS = ("neighbours_variance", "neighbours_std", "pdv")
# A smaller share of the figure than this is no difference: float rounding differs between machines.
NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class Change:
    """One key with its value before and now; None where it is not there."""

    key: str
    before: Any
    now: Any


def run(base: str, out: Path, pictures: Path, url: str | None) -> None:
    """Write the report to `out`, and the strips it shows to the folder `pictures`.

    base: a Git revision. url: where that folder can be seen by readers of the report; None: the report names files.

    Raises:
        UserError: when there is no such revision, or no dvc.lock of the present state.
    """
    _git("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}", problem=f"there is no revision {base!r}")
    if not Path("dvc.lock").is_file():
        raise UserError(Problem("dvc.lock", "there is none", "Run `dvc repro` first."))
    lock = {"before": _yaml(_at(base, "dvc.lock")), "now": _yaml(Path("dvc.lock").read_text(encoding="utf-8"))}
    stages = {when: content.get("stages", {}) for when, content in lock.items()}
    params = changes(_yaml(_at(base, "params.yaml")), _yaml(Path("params.yaml").read_text(encoding="utf-8")))
    figures = [change for name in _metrics(base) for change in _metrics_changes(base, name)]
    morphs = sorted(name.removeprefix("morph@") for name in stages["now"] if name.startswith("morph@"))
    pictures.mkdir(parents=True, exist_ok=True)
    strips = {morph: _strips(base, morph, pictures) for morph in morphs}
    commit, _, subject = _git("log", "-1", "--format=%h %s", base).strip().partition(" ")
    text = "\n\n".join(
        part
        for part in (
            MARK,
            f"## What this change does to the pipeline\n\ncompared with `{commit}` ({_cell(subject)})",
            stages_part(stages["before"], stages["now"]),
            table("Params", params),
            figures_part(figures, other_steps(params)),
            strips_part(strips, url),
        )
        if part
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n", encoding="utf-8")


def stages_part(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which stages ran anew, to another or the same result, and which did not need to."""
    ran = [name for name in now if now[name] != before.get(name)]
    same = [name for name in ran if now[name].get("outs") == before.get(name, {}).get("outs")]
    parts = {
        "Ran, with other results": [name for name in ran if name not in same],
        "Ran, with the same results": same,
        "Skipped": [name for name in now if name not in ran],
        "Gone": [name for name in before if name not in now],
    }
    return "  \n".join(f"**{title}:** {_names(names)}" for title, names in parts.items() if names)


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Every key, dotted, whose value differs."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return [Change(key, old.get(key), new.get(key)) for key in sorted(old | new) if old.get(key) != new.get(key)]


def _flat(content: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping) and content:
        for key, value in content.items():
            yield from _flat(value, f"{above}.{key}" if above else str(key))
    else:
        yield above, content


def table(title: str, rows: list[Change]) -> str:
    """Markdown of changed keys, or a word that there are none."""
    if not rows:
        return f"### {title}\n\nunchanged"
    lines = [f"| `{_cell(row.key)}` | {_cell(row.before)} | {_cell(row.now)} |" for row in rows]
    return "\n".join([f"### {title}", "", "| key | before | now |", "|---|---|---|", *lines])


def other_steps(params: list[Change]) -> bool:
    """Whether a change of params makes the steps between frames incomparable: other frames, keyframes or morphs."""
    return any(change.key.rpartition(".")[2] in ("frames", "keyframes", "loop") for change in params)


def verdict(change: Change) -> str:
    """better, worse or nothing, by the figure's name."""
    if not all(isinstance(value, int | float) for value in (change.before, change.now)) or FLOOR in change.key:
        return ""
    gain = change.now - change.before
    if abs(gain) <= NEGLIGIBLE * max(abs(change.before), abs(change.now)):
        return ""
    # "psnr_gap" ends in no "_psnr": the lower names are looked at first.
    if change.key.endswith(LOWER):
        return "better" if gain < 0 else "worse"
    if change.key.endswith(HIGHER):
        return "better" if gain > 0 else "worse"
    return ""


def figures_part(rows: list[Change], other_steps: bool = False) -> str:
    """Markdown of changed figures: those of morphs with a verdict, the worse ones first; the others folded away."""
    if not rows:
        return "### Figures\n\nunchanged"
    first, rest = [], []
    for row in rows:
        said = "" if other_steps and row.key.endswith(STEPS) else verdict(row)
        # Whether a baseline got better says nothing about the change.
        if said and ".morph." in row.key:
            first.append((said, row))
        else:
            rest.append(("", row))
    first.sort(key=lambda item: (item[0] != "worse", item[1].key))
    parts = ["### Figures", _figures(first) if first else "none of a morph is better or worse"]
    if other_steps:
        parts.append("Variance and deviation of the steps get no verdict: the frames or keyframes are others now.")
    if rest:
        parts += [f"<details><summary>{len(rest)} more, without a verdict</summary>", _figures(rest), "</details>"]
    return "\n\n".join(parts)


def _figures(rows: list[tuple[str, Change]]) -> str:
    marks = {"worse": "🔴 worse", "better": "🟢 better", "": ""}
    lines = [
        f"| `{_cell(row.key)}` | {_cell(row.before)} | {_cell(row.now)} | {_gain(row)} | {marks[said]} |"
        for said, row in rows
    ]
    return "\n".join(["| figure | before | now | change | |", "|---|--:|--:|--:|---|", *lines])


def _gain(row: Change) -> str:
    if not all(isinstance(value, int | float) for value in (row.before, row.now)):
        return ""
    return f"{row.now - row.before:+.3g}"


def strips_part(strips: Mapping[str, Mapping[str, str | None]], url: str | None) -> str:
    """Before and after of every morph."""
    parts = []
    for morph, names in strips.items():
        parts.append(f"### Morph `{morph}`")
        if names["before"] == names["now"] == "same":
            parts.append("the same frames")
            continue
        for when in ("before", "now"):
            name = names[when]
            if name is None:
                parts.append(f"{when}: not in this machine's cache (`dvc pull` brings what a remote has)")
            elif url:
                parts.append(f"{when}:\n\n![{morph}, {when}]({url.rstrip('/')}/{name})")
            else:
                parts.append(f"{when}: `{name}` among the run's artifacts")
    return "\n\n".join(parts)


def _strips(base: str, morph: str, pictures: Path) -> dict[str, str | None]:
    """The strips of a morph as WebP files in `pictures`; "same" twice where nothing changed."""
    path = f"data/morphs/{morph}/strip.png"
    now, before = Path(path), pictures / f"{morph}-before.png"
    found = {"before": _from_dvc(base, path, before), "now": now.is_file()}
    if all(found.values()) and before.read_bytes() == now.read_bytes():
        before.unlink()
        return {"before": "same", "now": "same"}
    names: dict[str, str | None] = {}
    for when, source in (("before", before), ("now", now)):
        names[when] = f"{morph}-{when}.webp" if found[when] else None
        if found[when]:
            with Image.open(source) as picture:
                picture.save(pictures / f"{morph}-{when}.webp", quality=85)
    before.unlink(missing_ok=True)
    return names


def _from_dvc(base: str, path: str, to: Path) -> bool:
    """A file of another revision, from DVC's cache or remote; whether it was there."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexDirError

    try:
        DVCFileSystem(rev=base).get_file(path, str(to))
    except (DvcException, DataIndexDirError, OSError):
        to.unlink(missing_ok=True)
        return False
    return to.is_file()


def _metrics(base: str) -> list[str]:
    """Every morph's metrics file, before or now."""
    now = {path.as_posix() for path in Path("reports/metrics").glob("*.json")}
    before = _git("ls-tree", "--name-only", base, "reports/metrics/").split("\n")
    return sorted(now | {name for name in before if name.endswith(".json")})


def _metrics_changes(base: str, name: str) -> list[Change]:
    path = Path(name)
    text = _at(base, name)
    before = loads(text) if text else {}
    now = loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [Change(f"{path.stem}.{change.key}", change.before, change.now) for change in changes(before, now)]


def _at(base: str, path: str) -> str:
    """A file as it is in a revision; empty where it is not there."""
    answer = subprocess.run(["git", "show", f"{base}:{path}"], capture_output=True, encoding="utf-8", check=False)
    return answer.stdout if answer.returncode == 0 else ""


def _git(*arguments: str, problem: str | None = None) -> str:
    answer = subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", check=False)
    if answer.returncode:
        found = problem or (answer.stderr.strip().splitlines() or ["git failed"])[-1]
        raise UserError(Problem("--base", found, "Name a commit, branch or tag that is in this clone."))
    return answer.stdout


def _yaml(text: str) -> dict[str, Any]:
    return YAML(typ="safe").load(StringIO(text)) or {}


def _cell(value: Any) -> str:
    """A value that breaks no table and marks nothing up."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()  # as params.yaml has it
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
