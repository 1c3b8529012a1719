"""Stage `report`: one page that a person would rather look at than read, and the figures in brief."""

import base64
import csv
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.evaluation.plots import loss_plot
from pipeline.images.metadata import read_rows
from pipeline.outputs import made, whole_file
from pipeline.params import Params, load_params
from pipeline.tracking import close_parent, track

REPORTS = Path("reports")

# Name in metrics.json, label, unit, what is better, digits.
FIGURES = (
    ("endpoints_psnr", "endpoints to keyframes", "dB", "higher", 1),
    ("endpoints_floor_psnr", "autoencoder alone (the floor)", "dB", "", 1),
    ("endpoints_worst_psnr_gap", "worst endpoint under the floor", "dB", "lower", 2),
    ("endpoints_ssim", "endpoints, SSIM", "", "higher", 3),
    ("endpoints_perceptual", "endpoints, perceptual distance", "", "lower", 3),
    ("neighbours_sum", "length of the way", "", "", 2),
    ("neighbours_variance", "variance of the steps", "", "lower", 5),
    ("neighbours_max_over_mean", "largest step over the mean", "", "lower", 2),
    ("directness", "length over the straight way", "", "", 2),
)
VARIANTS = ("morph", "without_adapters", "cross_fade")


@dataclass(frozen=True)
class Line:
    """A line of the table of figures: a label and one cell a variant, with the place of the best."""

    label: str
    unit: str
    cells: tuple[str, ...]
    best: int | None


def run() -> None:
    """Write reports/index.html and reports/metrics.json from the outputs of the other stages."""
    params = load_params()
    figures = {key: made(REPORTS / "metrics" / f"{key}.json", f"evaluate@{key}") for key in params.morphs}
    for key in params.sets:
        made(REPORTS / "samples" / f"{key}.png", f"sample@{key}")
    with track("report", params.tracking, {}) as tracker:
        metrics = {key: json.loads(path.read_text(encoding="utf-8")) for key, path in figures.items()}
        brief = {key: _in_brief(values) for key, values in metrics.items()}
        with whole_file(REPORTS / "metrics.json") as path:
            path.write_text(json.dumps(brief, indent=2) + "\n", encoding="utf-8")
        environment = Environment(
            loader=PackageLoader("pipeline", "stages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        page = environment.get_template("report.html").render(
            morphs=[_morph(key, metrics[key]) for key in params.morphs],
            sets=[_set(key, params) for key in params.sets],
            base=params.base,
        )
        with whole_file(REPORTS / "index.html") as path:
            path.write_text(page, encoding="utf-8")
        tracker.artifact(REPORTS / "index.html")
        tracker.metrics({f"{key}/{name}": value for key, values in brief.items() for name, value in values.items()})
    close_parent(params.tracking)


def _in_brief(metrics: dict[str, Any]) -> dict[str, float]:
    """The few figures that `dvc metrics diff` shows."""
    morph = metrics["morph"]
    return {
        "endpoint_psnr": round(morph["endpoints_psnr"], 3),
        "endpoint_gap": round(morph["endpoints_worst_psnr_gap"], 3),
        "path_length": round(morph["neighbours_sum"], 4),
        "max_over_mean": round(morph["neighbours_max_over_mean"], 4),
    }


def _morph(key: str, metrics: dict[str, Any]) -> dict[str, Any]:
    folder = Path("data/morphs", key)
    facts = json.loads((folder / "morph.json").read_text(encoding="utf-8"))
    return {
        "key": key,
        "facts": facts,
        "clip": embed(folder / "morph.webp"),
        "strip": embed(folder / "strip.png"),
        "curves": embed(REPORTS / "smoothness" / f"{key}.png"),
        "keyframes": [
            {"picture": embed(Path("data/prepared", facts["set"], item["file_name"])), "text": item["text"]}
            for item in facts["keyframes"]
        ],
        "lines": [_line(figure, metrics) for figure in FIGURES],
    }


def _line(figure: tuple[str, str, str, str, int], metrics: dict[str, Any]) -> Line:
    name, label, unit, better, digits = figure
    values = [metrics[variant].get(name) for variant in VARIANTS]
    there = [value for value in values if value is not None and math.isfinite(value)]
    best = None
    if better and len(there) > 1:
        best = values.index(max(there) if better == "higher" else min(there))
    cells = tuple("–" if value is None else f"{value:.{digits}f}" for value in values)
    return Line(label, unit, cells, best)


def _set(key: str, params: Params) -> dict[str, Any]:
    spec = params.the_set(key)
    with tempfile.TemporaryDirectory() as folder:
        plot = Path(folder, "loss.png")
        loss_plot(*_read_losses(REPORTS / "curves" / "sets" / f"{key}.csv"), plot)
        loss = embed(plot)
    return {
        "key": key,
        "adapter": spec.adapter,
        "pictures": len(read_rows(Path("data/prepared", key))),
        "samples": embed(REPORTS / "samples" / f"{key}.png"),
        "loss": loss,
        "train": spec.train.model_dump(),
    }


def _read_losses(path: Path) -> tuple[list[int], dict[str, list[float]]]:
    """The steps, and the losses of each adapter."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [column.removeprefix("loss ") for column in rows[0] if column.startswith("loss ")]
    return [int(row["step"]) for row in rows], {name: [float(row[f"loss {name}"]) for row in rows] for name in names}


def embed(path: Path) -> str:
    """A file as a data URI, so that the page opens from disk anywhere, with no network."""
    kind = {".png": "image/png", ".webp": "image/webp", ".mp4": "video/mp4"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
