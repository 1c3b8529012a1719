"""Stage `evaluate@<morph>`: how true a morph's endpoints are and how evenly it moves, beside its baselines."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.nn import functional as F

from pipeline.evaluation.metrics import Floats, directness, fidelity, neighbour_distances, smoothness
from pipeline.evaluation.plots import Curve, smoothness_plot
from pipeline.images.tensors import read_pictures
from pipeline.outputs import made, whole_file
from pipeline.params import load_params
from pipeline.tracking import track

VARIANTS = {"morph": "frames", "without_adapters": "no-lora", "cross_fade": "cross-fade"}


def run(key: str) -> None:
    """Write the morph's figures, its curves and their picture, each in its folder of reports/."""
    params = load_params()
    spec = params.the_morph(key)
    source, out = made(Path("data/morphs", key), f"morph@{key}"), Path("reports")
    section = params.evaluate.model_dump()
    with track(f"evaluate@{key}", params.tracking, section, datasets={key: source}) as tracker:
        facts = json.loads((source / "morph.json").read_text(encoding="utf-8"))
        stops = [keyframe["frame"] for keyframe in facts["keyframes"]]
        keyframes = read_pictures(Path("data/prepared", spec.set, item["file_name"]) for item in facts["keyframes"])
        floor = read_pictures(sorted((source / "floor").glob("*.png")))
        metrics: dict[str, Any] = {}
        distances: dict[str, Floats] = {}
        for variant, folder in VARIANTS.items():
            frames = read_pictures(sorted((source / folder).glob("*.png")))
            small = shrink(frames, params.evaluate.max_side)
            distances[variant] = neighbour_distances(small)
            straight = neighbour_distances(small[stops])
            metrics[variant] = {
                **{f"neighbours_{name}": value for name, value in asdict(smoothness(distances[variant])).items()},
                "directness": directness(distances[variant], straight),
            }
            if variant != "cross_fade":  # its endpoints are the keyframes themselves, copied
                endpoints = [asdict(item) for item in fidelity(frames[stops], floor, keyframes)]
                metrics[variant] |= {
                    f"endpoints_{name}": fmean(item[name] for item in endpoints) for name in endpoints[0]
                }
                metrics[variant]["endpoints_worst_psnr_gap"] = max(item["psnr_gap"] for item in endpoints)
        rounded = {
            variant: {name: None if value is None else round(value, 6) for name, value in values.items()}
            for variant, values in metrics.items()
        }
        with whole_file(out / "metrics" / f"{key}.json") as path:
            path.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8")
        with whole_file(out / "curves" / "morphs" / f"{key}.csv") as path:
            write_curves(path, facts["positions"], distances)
        plot = out / "smoothness" / f"{key}.png"
        with whole_file(plot) as path:
            named = {variant.replace("_", " "): Curve(facts["positions"], way) for variant, way in distances.items()}
            smoothness_plot(named, path)
        flat = {f"{v}/{name}": value for v, values in rounded.items() for name, value in values.items()}
        tracker.metrics({name: value for name, value in flat.items() if value is not None})
        for step, row in enumerate(zip(*distances.values(), strict=True)):
            tracker.metrics(
                {f"distance/{name}": float(value) for name, value in zip(distances, row, strict=True)}, step
            )
        tracker.picture("smoothness", plot)


def shrink(pictures: torch.Tensor, max_side: int) -> torch.Tensor:
    """Pictures (N, 3, H, W) with the longest side at most `max_side`, averaged over areas.

    Very wide ones stay larger: the features need 16 pixels of the shorter side.
    """
    height, width = pictures.shape[-2:]
    scale = max(max_side / max(height, width), 16 / min(height, width))
    if scale >= 1:
        return pictures
    return F.interpolate(pictures, size=(max(1, round(height * scale)), max(1, round(width * scale))), mode="area")


def write_curves(path: Path, positions: Sequence[float], distances: Mapping[str, Floats]) -> None:
    """One line a step between neighbouring frames: its middle position and its distance in each variant."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["position", *distances])
        middles = [(a + b) / 2 for a, b in pairwise(positions)]
        for middle, *row in zip(middles, *distances.values(), strict=True):
            writer.writerow([f"{middle:.6g}", *(f"{distance:.6g}" for distance in row)])
