"""Stage `evaluate@<morph>`: how smooth, faithful and natural a morph is, beside its baselines."""

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from pipeline.adapted_base import open_adapted_base
from pipeline.base.device import choose_device
from pipeline.base.protocol import Base
from pipeline.errors import UserError
from pipeline.evaluation.lpips import Lpips, find_lpips_problems
from pipeline.evaluation.measurement import Figures, Measurement, Reference, measure
from pipeline.evaluation.strangeness import strangeness
from pipeline.frames.tensors import PictureFiles, read_pictures
from pipeline.frames.variants import CROSS_FADE, MORPH, VARIANTS, Variant, frame_paths, read_facts
from pipeline.outputs import atomic_file, require_output
from pipeline.params import load_params
from pipeline.processes.joining import all_processes
from pipeline.report.plots import Curve, smoothness_plot
from pipeline.sections import EvaluateSection
from pipeline.tracking import Tracker, track

TABLE_ROWS = 64  # at most; of longer morphs every second frame, every third and so on
METRICS, CURVES, PLOTS = Path("reports/metrics"), Path("reports/curves/morphs"), Path("reports/smoothness")


def run(key: str) -> None:
    """Write the morph's figures, its curves and their plot, each in its folder of reports/.

    With as many processes as there are to use; the first writes.
    """
    params = load_params()
    accelerator = all_processes(["evaluate", key], params.machine.processes, choose_device(params.machine.device))
    spec = params.get_morph(key)
    source = require_output(Path("data/morphs", key), f"morph@{key}")
    section = {"base": params.base.model_dump(), **params.evaluate.model_dump()}
    datasets = {f"morph {key}": source}
    tracked: AbstractContextManager[Tracker | None] = nullcontext()
    if accelerator.is_main_process:
        tracked = track(f"evaluate@{key}", params.tracking, section, datasets=datasets, tags=params.base.tags())
    with tracked as tracker:
        learned = open_lpips(params.evaluate, accelerator.device)
        base = open_adapted_base(params.base, accelerator.device)
        facts = read_facts(source)
        reference = read_reference(source, Path("data/prepared", spec.set), facts, base)
        measurements = {
            variant: measure(
                PictureFiles(frame_paths(source / variant.folder, len(facts["positions"]))),
                facts["alphas"][variant.label],
                reference,
                base,
                max_side=params.evaluate.max_side,
                batch=params.machine.batch or reference.stops[1] + 1,  # the frames of a segment
                learned=learned,
                generated_ends=variant != CROSS_FADE,
                accelerator=accelerator,
            )
            for variant in VARIANTS
            if variant.label in facts["alphas"]
        }
        if tracker is None:
            return
        measurements[MORPH].figures["keyframes_strangeness"] = strangeness(
            base, reference.keyframes, reference.captions, params.machine.batch
        )
        # A loop ends where it began, one keyframe further.
        positions = [*facts["positions"], float(len(reference.stops))] if reference.loop else facts["positions"]
        write_outputs(key, positions, measurements)
        log_measurements(tracker, key, measurements)
        log_frames(tracker, source, facts, measurements)


def open_lpips(section: EvaluateSection, device: torch.device) -> Lpips | None:
    """LPIPS where the params name its weights.

    Raises:
        UserError: when they cannot be used, or are not the pinned ones.
    """
    if section.lpips is None:
        return None
    if problems := find_lpips_problems(Path(section.lpips), section.lpips_digest):
        raise UserError(*problems)
    return Lpips.read(Path(section.lpips), device)


def read_reference(morph: Path, prepared: Path, facts: Mapping[str, Any], base: Base) -> Reference:
    """What the frames are compared with. facts: the content of morph.json."""
    keyframes = facts["keyframes"]
    return Reference(
        keyframes=read_pictures(prepared / keyframe["file_name"] for keyframe in keyframes),
        floor=read_pictures(frame_paths(morph / "floor", len(keyframes))),
        captions=base.condition([keyframe["text"] for keyframe in keyframes]),
        stops=[keyframe["frame"] for keyframe in keyframes],
        loop=facts["settings"]["loop"],
    )


def write_outputs(key: str, positions: Sequence[float], measurements: Mapping[Variant, Measurement]) -> None:
    """Write the figures, the curves, and their plot. positions: of the frames, and of a loop's end."""
    figures = {variant.name: rounded(measured.figures) for variant, measured in measurements.items()}
    with atomic_file(METRICS / f"{key}.json") as path:
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    with atomic_file(CURVES / f"{key}.csv") as path, path.open("w", encoding="utf-8", newline="") as file:
        # One line a step between neighbouring frames: the position midway, and its distance in each variant.
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["position", *(variant.name for variant in measurements)])
        midway = [(first + second) / 2 for first, second in pairwise(positions)]
        for row in zip(midway, *(measured.distances for measured in measurements.values()), strict=True):
            writer.writerow([f"{value:.6g}" for value in row])
    with atomic_file(PLOTS / f"{key}.png") as path:
        smoothness_plot(
            {variant.label: Curve(positions, measured.distances) for variant, measured in measurements.items()}, path
        )


def log_measurements(tracker: Tracker, key: str, measurements: Mapping[Variant, Measurement]) -> None:
    """Track the figures, the distance of each step, and the plot."""
    for variant, measured in measurements.items():
        figures = {name: value for name, value in rounded(measured.figures).items() if value is not None}
        # Not compared: the report puts the few that decide beside other states'.
        tracker.metrics({f"{variant.name}/{name}": value for name, value in figures.items()}, compared=False)
    for step, row in enumerate(zip(*(measured.distances for measured in measurements.values()), strict=True)):
        names = (f"by_frame/distance/{variant.name}" for variant in measurements)  # MLflow sorts by name: curves first
        tracker.metrics(dict(zip(names, map(float, row), strict=True)), step)
    tracker.picture("smoothness", PLOTS / f"{key}.png")


def log_frames(
    tracker: Tracker, morph: Path, facts: Mapping[str, Any], measurements: Mapping[Variant, Measurement]
) -> None:
    """Track a table of the frames: those of all variants beside each other, and how far the next one is."""
    positions = facts["positions"]
    shown = range(0, len(positions), -(-len(positions) // TABLE_ROWS))
    columns: dict[str, Sequence[Path | float | str]] = {
        "frame": [f"{number:04}" for number in shown],
        "position": [round(positions[number], 4) for number in shown],
    }
    for variant, measured in measurements.items():
        paths = frame_paths(morph / variant.folder, len(positions))
        columns[variant.label] = [paths[number] for number in shown]
        steps = [round(float(step), 6) for step in measured.distances]
        columns[f"{variant.label}: to the next"] = [steps[number] if number < len(steps) else "" for number in shown]
    tracker.table("frames", columns)


def rounded(figures: Figures) -> Figures:
    """To six digits: more would differ between machines."""
    return {name: None if value is None else round(value, 6) for name, value in figures.items()}
