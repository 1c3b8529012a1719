"""Stage `report`: one page to look at, and the few figures that decide."""

import json
from pathlib import Path
from statistics import fmean

import numpy as np

from pipeline.frames.variants import MORPH, read_facts
from pipeline.outputs import atomic_file, require_output
from pipeline.params import Params, load_params
from pipeline.report.figures import read_metrics, summary
from pipeline.report.page import edit_part, morph_part, render, set_part
from pipeline.report.trainings import read_trainings
from pipeline.tracking import close_parent, track

REPORTS = Path("reports")


def run() -> None:
    """Write reports/index.html and reports/metrics.json from the outputs of the other stages."""
    params = load_params()
    files = {key: require_output(REPORTS / "metrics" / f"{key}.json", f"evaluate@{key}") for key in params.morphs}
    for key in params.sets:
        require_output(REPORTS / "samples" / f"{key}.png", f"sample@{key}")
    for key in params.edits:
        require_output(Path("data/edits", key, "edit.json"), f"edit@{key}")
    with track("report", params.tracking, {}) as tracker:
        metrics = {key: read_metrics(path) for key, path in files.items()}
        summaries = {key: summary(values) for key, values in metrics.items()}
        with atomic_file(REPORTS / "metrics.json") as path:
            path.write_text(json.dumps(summaries, indent=2) + "\n", encoding="utf-8")
        page = render(
            [morph_part(key, metrics[key]) for key in params.morphs],
            [edit_part(key) for key in params.edits],
            [set_part(key, params.get_set(key), params.train) for key in params.sets],
            params.base,
        )
        with atomic_file(REPORTS / "index.html") as path:
            path.write_text(page, encoding="utf-8")
        tracker.artifact(REPORTS / "index.html")
        figures = {f"{key}/{name}": value for key, values in summaries.items() for name, value in values.items()}
        tracker.metrics({name: value for name, value in figures.items() if value is not None})
        tracker.metrics(state_figures(params))
        if params.tracking.registers:
            for stage in (*(f"train@{key}" for key in params.sets), *(f"morph@{key}" for key in params.morphs)):
                tracker.register(params, stage)
    close_parent(params.tracking)


def state_figures(params: Params) -> dict[str, float]:
    """The single figures of training and morphing, by their names in a parent run, whichever of these stages ran."""
    figures = {}
    for key in params.sets:
        trainings, _ = read_trainings(REPORTS / "curves/sets" / f"{key}.csv")
        losses = [np.asarray(training.losses) for training in trainings.values()]
        # As the stage itself logs it: the mean over the last tenth of each training.
        figures[f"train.{key}/final_loss"] = fmean(float(each[-max(1, len(each) // 10) :].mean()) for each in losses)
    for key in params.morphs:
        facts = read_facts(Path("data/morphs", key))
        figures[f"morph.{key}/inverted_noise_std"] = facts["inverted_noise_std"][MORPH.label]
    return figures
