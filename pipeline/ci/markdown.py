"""The parts of the CI report as Markdown."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from pipeline.ci.changes import Change, difference, judged
from pipeline.errors import printable


def stages_part(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which stages ran, with changed or unchanged results, and which were skipped. before, now: stages of dvc.lock."""
    ran = [name for name in now if now[name] != before.get(name)]
    unchanged = [name for name in ran if now[name].get("outs") == before.get(name, {}).get("outs")]
    parts = {
        "Ran, results changed": [name for name in ran if name not in unchanged],
        "Ran, results unchanged": unchanged,
        "Skipped": [name for name in now if name not in ran],
        "Removed": [name for name in before if name not in now],
    }
    return "  \n".join(f"**{title}:** {_names(names)}" for title, names in parts.items() if names)


def params_part(rows: Sequence[Change]) -> str:
    """A table of changed params."""
    if not rows:
        return "### Params\n\nunchanged"
    lines = [f"| {cell(row.key)} | {cell(row.before)} | {cell(row.now)} |" for row in rows]
    return "\n".join(["### Params", "", "| key | before | now |", "|---|---|---|", *lines])


def figures_part(rows: Sequence[Change], steps_differ: bool = False, foreign: Collection[str] = ()) -> str:
    """Changed figures: those of morphs with a verdict, the worse ones first; the others folded away.

    foreign: morphs of whose naturalness the base knows nothing.
    """
    if not rows:
        return "### Figures\n\nunchanged"
    verdicts = [(judged(row, steps_differ, foreign), row) for row in rows]
    compared = sorted(filter(itemgetter(0), verdicts), key=lambda item: (item[0] != "worse", item[1].key))
    others = [item for item in verdicts if not item[0]]
    parts = ["### Figures", _figures(compared) if compared else "no figure of a morph is better or worse"]
    if steps_differ:
        parts.append("The variance of the steps gets no verdict: the frames or keyframes changed.")
    if foreign:
        parts.append(f"Naturalness gets no verdict where keyframes are strange to the base: {_names(sorted(foreign))}.")
    if others:
        parts += [f"<details><summary>{len(others)} more, without a verdict</summary>", _figures(others), "</details>"]
    return "\n\n".join(parts)


def _figures(rows: Iterable[tuple[str, Change]]) -> str:
    marks = {"worse": "🔴 worse", "better": "🟢 better", "": ""}
    lines = []
    for found, row in rows:
        gain = difference(row)
        cells = (
            cell(row.key),
            cell(row.before),
            cell(row.now),
            "" if gain is None else f"{gain:+.3g}",
            marks[found],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(["| figure | before | now | change | |", "|---|--:|--:|--:|---|", *lines])


def strips_part(strips: Mapping[str, Mapping[str, str | None] | None], url: str | None) -> str:
    """Strips of every morph, before and now.

    strips: by morph their file names, None for one that is not there; None for a morph whose frames are unchanged. url:
    of the folder with the files; None: the files are named.
    """
    parts = []
    for morph, names in strips.items():
        parts.append(f"### Morph {inert(morph)}")
        if names is None:
            parts.append("the same frames")
            continue
        for when, name in names.items():
            if name is None:
                parts.append(f"{when}: not in this machine's cache (`dvc pull` fetches it from a remote)")
            elif url:
                parts.append(f"{when}:\n\n![{morph}, {when}]({url.rstrip('/')}/{name})")
            else:
                parts.append(f"{when}: `{name}` among the run's artifacts")
    return "\n\n".join(parts)


def cell(value: Any) -> str:
    """A value of params or figures in a table: numbers plain, all else inert."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()  # as in params.yaml
    if isinstance(value, int | float):
        return f"{value:.6g}"
    return inert(value).replace("|", "\\|")  # a table is cut into cells before anything else is read


def inert(value: Any) -> str:
    """Foreign text as a code span, in which nothing lives: no mark-up, link, picture, mention or number of an issue.

    Fenced by more backticks than it has in a row (CommonMark 0.31, section 6.1); one line, cut where it is long.
    """
    text = printable(str(value), 200)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence} {text} {fence}" if "`" in text or not text.strip() else f"{fence}{text}{fence}"


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(inert, names))
