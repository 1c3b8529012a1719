"""`morphline promote`: makes the present results the champion if they are better, by the rules of the CI report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.ci.changes import Change, changes, judged, steps_differ
from pipeline.ci.markdown import cell
from pipeline.commands.package import stage_of
from pipeline.errors import Problem, UserError
from pipeline.params import Params, load_params
from pipeline.report.figures import is_foreign
from pipeline.state import content_digest, dataset_digest, locked_dependency
from pipeline.tracking import track
from pipeline.tracking.registry import (
    CHAMPION,
    FIGURES,
    SETTINGS,
    Candidate,
    candidate_of,
    champion,
    crown,
    open_registry,
    registered_name,
    version_of,
    versions,
)

if TYPE_CHECKING:
    from pipeline.tracking.registry import MlflowClient, ModelVersion


def run(name: str, to: int | None) -> bool:
    """Register the present results of a set or morph if they are not, move the alias to them if they are better than
    the champion's, and print why or why not. to: a version that gets it whatever its figures. Whether it was moved.

    Raises:
        UserError: for a name or version that is none, results that are missing or stale, and a registry that cannot be
            reached.
    """
    params = load_params()
    stage = stage_of(params, name)
    client, place = open_registry(params.tracking)
    model = registered_name(params.tracking, stage)
    before = champion(client, model)
    if to is not None:
        crown(client, _numbered(client, model, to, place))
        print(f"{model}: version {to} is the {CHAMPION} now{_was(before)}")
        return True
    candidate = candidate_of(params, stage)
    _require_fresh(candidate)
    version = _registered(client, params, candidate, place)
    if before is None or before.version == version.version:
        if before is None:
            crown(client, version)
        print(f"{model}: version {version.version} is the {CHAMPION}" + (" now: there was none" * (before is None)))
        return True
    better, reasons = compare(before.tags, version.tags)
    if better:
        crown(client, version)
        print(f"{model}: version {version.version} is the {CHAMPION} now{_was(before)}")
    else:
        print(f"{model}: version {before.version} stays the {CHAMPION}; version {version.version} is no better")
        reasons.append(f"  `morphline promote {stage} --to {version.version}` moves the alias all the same")
    print(*reasons, sep="\n")
    return better


def compare(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[bool, list[str]]:
    """Whether figures are better: none that is judged became worse and one at least better, each by its direction and
    beyond its tolerance; and a line for each reason. before, now: tags of versions."""
    old, new = (_loaded(tags, FIGURES) for tags in (before, now))
    both = old.keys() & new.keys()
    if not both:
        return False, ["  there is nothing to compare: no morph was measured with both"]
    differ = steps_differ(changes(_loaded(before, SETTINGS), _loaded(now, SETTINGS)))
    foreign = [morph for morph in both if any(_is_foreign(figures[morph]) for figures in (old, new))]
    rows = [Change(f"{morph}.morph.{change.key}", change.before, change.now)
            for morph in sorted(both) for change in changes(old[morph], new[morph])]  # fmt: skip
    found: dict[str, list[Change]] = {"better": [], "worse": []}
    for row in rows:
        if verdict := judged(row, differ, foreign):
            found[verdict].append(row)
    reasons = [f"  {verdict}: {line}" for verdict, these in found.items() for line in map(_told, these)]
    return bool(found["better"]) and not found["worse"], reasons or ["  no figure differs by more than chance"]


def _registered(client: "MlflowClient", params: Params, candidate: Candidate, place: str) -> "ModelVersion":
    """The candidate's version, with its present figures."""
    version = version_of(client, candidate.name, candidate.state)
    if version is None:
        note = f"Registered by `morphline promote {candidate.stage}`."
        with track(f"register@{candidate.stage.partition('@')[2]}", params.tracking, {},
                   tags={"mlflow.note.content": note, **params.base.tags()}) as tracker:  # fmt: skip
            tracker.register(params, candidate.stage)
        version = version_of(client, candidate.name, candidate.state)
    if version is None:
        fix = "See the warning above; run the same again."
        raise UserError(Problem(candidate.name, f"it could not be registered in {place}", fix))
    for tag in (FIGURES, SETTINGS):
        client.set_model_version_tag(version.name, version.version, tag, candidate.tags[tag])
    return client.get_model_version(version.name, version.version)


def _require_fresh(candidate: Candidate) -> None:
    """Results that are not those of dvc.lock, or were not measured: a version must say what it is."""
    problems = [
        Problem(path, "it is not what dvc.lock says", "Run `dvc repro`, or `dvc checkout` to go back.")
        for path, digest in candidate.outputs.items()
        if content_digest(Path(path)) != digest
    ]
    for morph in candidate.figures:
        frames = Path("data/morphs", morph)
        measured = locked_dependency(f"evaluate@{morph}", frames)
        if measured and measured != dataset_digest(frames):
            found, fix = "measured on other frames than there are now", f"Run `dvc repro evaluate@{morph}`."
            problems.append(Problem(f"reports/metrics/{morph}.json", found, fix))
    if not candidate.figures:
        found = "no figures: no morph goes through its pictures or is in its style, or none is measured yet"
        fix = f"Run `dvc repro`, or name a version: `morphline promote {candidate.stage} --to VERSION`."
        problems.append(Problem(candidate.stage, found, fix))
    if problems:
        raise UserError(*problems)


def _numbered(client: "MlflowClient", model: str, number: int, place: str) -> "ModelVersion":
    there = {int(version.version): version for version in versions(client, model)}
    if number not in there:
        found = f"{model} has no version {number} in the registry of {place}"
        raise UserError(Problem("--to", found, f"There are: {', '.join(map(str, there)) or 'none yet'}."))
    return there[number]


def _loaded(tags: Mapping[str, str], name: str) -> dict[str, Any]:
    """A tag's content; none where somebody edited it into something else."""
    try:
        content = json.loads(tags.get(name, "{}"))
    except ValueError:
        return {}
    if not isinstance(content, dict):
        return {}
    return {str(key): value for key, value in content.items() if isinstance(value, dict)}


def _is_foreign(figures: Mapping[str, Any]) -> bool:
    return "naturalness" in figures and is_foreign(figures.get("keyframes_strangeness"))


def _told(row: Change) -> str:
    morph, _, figure = row.key.partition(".morph.")
    return f"{figure} of {morph}: {cell(row.now)}, before {cell(row.before)}"


def _was(before: "ModelVersion | None") -> str:
    return f", before it was version {before.version}" if before else ""
