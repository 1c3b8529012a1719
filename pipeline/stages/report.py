"""Stage `report`: one page that a person would rather look at than read, and the figures in brief."""

import json
from pathlib import Path
from statistics import fmean
from typing import cast

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.outputs import atomic_file, require_output
from pipeline.params import Params, load_params
from pipeline.report.figures import Metrics
from pipeline.report.page import morph_part, read_trainings, set_part
from pipeline.tracking import close_parent, track

REPORTS = Path("reports")

# Name in brief, name in full, digits.
BRIEF = (
    ("endpoint_psnr", "endpoints_psnr", 3),
    ("endpoint_gap", "endpoints_worst_psnr_gap", 3),
    ("naturalness", "naturalness", 4),
    ("path_length", "neighbours_sum", 4),
    ("max_over_mean", "neighbours_max_over_mean", 4),
)


def run() -> None:
    """Write reports/index.html and reports/metrics.json from the outputs of the other stages."""
    params = load_params()
    figures = {key: require_output(REPORTS / "metrics" / f"{key}.json", f"evaluate@{key}") for key in params.morphs}
    for key in params.sets:
        require_output(REPORTS / "samples" / f"{key}.png", f"sample@{key}")
    with track("report", params.tracking, {}) as tracker:
        metrics: dict[str, Metrics] = {
            key: json.loads(path.read_text(encoding="utf-8")) for key, path in figures.items()
        }
        brief = {key: in_brief(values) for key, values in metrics.items()}
        with atomic_file(REPORTS / "metrics.json") as path:
            path.write_text(json.dumps(brief, indent=2) + "\n", encoding="utf-8")
        environment = Environment(
            loader=PackageLoader("pipeline", "report"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        page = environment.get_template("page.html").render(
            morphs=[morph_part(key, metrics[key]) for key in params.morphs],
            sets=[set_part(key, params.get_set(key), params.train) for key in params.sets],
            base=params.base,
        )
        with atomic_file(REPORTS / "index.html") as path:
            path.write_text(page, encoding="utf-8")
        tracker.artifact(REPORTS / "index.html")
        flat = {f"{key}/{name}": value for key, values in brief.items() for name, value in values.items()}
        tracker.metrics({name: value for name, value in flat.items() if value is not None})
        tracker.metrics(figures_of_state(params))
    close_parent(params.tracking)


def figures_of_state(params: Params) -> dict[str, float]:
    """The single figures of training and morphing by their names in a parent run, whichever of these stages ran."""
    figures = {}
    for key in params.sets:
        trainings, _ = read_trainings(REPORTS / "curves/sets" / f"{key}.csv")
        losses = [cast(list[float], training.losses) for training in trainings.values()]
        figures[f"train.{key}/final_loss"] = fmean(fmean(each[-max(1, len(each) // 10) :]) for each in losses)
    for key in params.morphs:
        facts = json.loads(Path("data/morphs", key, "morph.json").read_text(encoding="utf-8"))
        figures[f"morph.{key}/inverted_noise_std"] = facts["inverted_noise_std"]["morph"]
    return figures


def in_brief(metrics: Metrics) -> dict[str, float | None]:
    """The few figures of a morph that `dvc metrics diff` shows."""
    full = {short: (metrics["morph"][name], digits) for short, name, digits in BRIEF}
    return {short: None if value is None else round(value, digits) for short, (value, digits) in full.items()}
