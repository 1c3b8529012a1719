"""Stage `evaluate@<morph>`: a morph's endpoints, pace and naturalness, beside its baselines."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import torch
from torch.nn import functional as F

from pipeline.base.device import choose_device
from pipeline.base.opening import open_base
from pipeline.distances import features
from pipeline.errors import UserError
from pipeline.evaluation import lpips
from pipeline.evaluation.fidelity import fidelity
from pipeline.evaluation.naturalness import naturalness
from pipeline.evaluation.smoothness import Floats, directness, neighbour_distances, pdv, ppl, segments, smoothness
from pipeline.frames.tensors import read_pictures
from pipeline.morphing.interpolation import lerp
from pipeline.outputs import atomic_file, require_output
from pipeline.params import EvaluateSection, load_params
from pipeline.report.plots import Curve, smoothness_plot
from pipeline.tracking import track

# Name in the figures: name in morph.json, and folder of the frames.
VARIANTS = {
    "morph": ("morph", "frames"),
    "without_adapters": ("without adapters", "no-lora"),
    "cross_fade": ("cross-fade", "cross-fade"),
}

Figures = dict[str, float | None]


def run(key: str) -> None:
    """Write the morph's figures, its curves and their picture, each in its folder of reports/."""
    params = load_params()
    spec = params.get_morph(key)
    source, out = require_output(Path("data/morphs", key), f"morph@{key}"), Path("reports")
    section = {"base": params.base.model_dump(), **params.evaluate.model_dump()}
    datasets = {f"morph {key}": source}
    with track(f"evaluate@{key}", params.tracking, section, datasets=datasets, tags=params.base.tags()) as tracker:
        learned = open_lpips(params.evaluate, choose_device(params.machine.device))
        base = open_base(params.base, choose_device(params.machine.device))
        facts = json.loads((source / "morph.json").read_text(encoding="utf-8"))
        stops = [keyframe["frame"] for keyframe in facts["keyframes"]]
        loop = facts["settings"]["loop"]
        keyframes = read_pictures(Path("data/prepared", spec.set, item["file_name"]) for item in facts["keyframes"])
        conditioning = base.condition([item["text"] for item in facts["keyframes"]])
        floor = read_pictures(sorted((source / "floor").glob("*.png")))
        between = [number for number in range(len(facts["positions"])) if number not in stops]
        metrics: dict[str, Figures] = {}
        distances: dict[str, Floats] = {}
        for variant, (label, folder) in VARIANTS.items():
            frames = read_pictures(sorted((source / folder).glob("*.png")))
            ends = [*stops, len(frames)] if loop else stops
            distances[variant], figures = pace(closed(frames, loop), ends, params.evaluate.max_side)
            if learned:
                figures |= learned_pace(learned, closed(frames, loop), ends, params.evaluate.max_side)
            if variant != "cross_fade":  # its endpoints are the keyframes themselves, copied
                figures |= endpoints(frames[stops], floor, keyframes)
            captions = captions_between(facts["alphas"][label], closed(conditioning, loop))
            figures["naturalness"] = naturalness(
                base, (frames[between], captions), (keyframes, conditioning), params.machine.batch or stops[1] + 1
            )
            metrics[variant] = {name: None if value is None else round(value, 6) for name, value in figures.items()}
        with atomic_file(out / "metrics" / f"{key}.json") as path:
            path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        positions = [*facts["positions"], float(len(stops))] if loop else facts["positions"]
        with atomic_file(out / "curves" / "morphs" / f"{key}.csv") as path:
            write_curves(path, positions, distances)
        plot = out / "smoothness" / f"{key}.png"
        with atomic_file(plot) as path:
            named = {variant.replace("_", " "): Curve(positions, way) for variant, way in distances.items()}
            smoothness_plot(named, path)
        flat = {f"{v}/{name}": value for v, values in metrics.items() for name, value in values.items()}
        # Not compared: the report puts the few that decide beside other states'.
        tracker.metrics({name: value for name, value in flat.items() if value is not None}, compared=False)
        for step, row in enumerate(zip(*distances.values(), strict=True)):
            tracker.metrics(
                {f"distance/{name}": float(value) for name, value in zip(distances, row, strict=True)}, step
            )
        tracker.picture("smoothness", plot)


def open_lpips(section: EvaluateSection, device: torch.device) -> lpips.Lpips | None:
    """LPIPS where the params name its weights.

    Raises:
        UserError: when they cannot be used, or are not the pinned ones.
    """
    if section.lpips is None:
        return None
    if problems := lpips.find_lpips_problems(Path(section.lpips), section.lpips_digest):
        raise UserError(*problems)
    return lpips.Lpips.read(Path(section.lpips), device)


def closed(row: torch.Tensor, loop: bool) -> torch.Tensor:
    """Frames or captions (N, ...); of a loop with the first again at the end, where its last step leads."""
    return torch.cat([row, row[:1]]) if loop else row


def captions_between(alphas: Sequence[Sequence[float]], conditioning: torch.Tensor) -> torch.Tensor:
    """The captions (F, L, D) that frames between keyframes were made with: linear between the two keyframes' at alpha.

    alphas: by segment, both its ends included. conditioning: (K, L, D), of a loop with the first keyframe's again at
    the end.
    """
    return torch.cat(
        [
            lerp(first, second, torch.tensor(segment[1:-1]))
            for segment, (first, second) in zip(alphas, pairwise(conditioning), strict=True)
        ]
    )


def pace(frames: torch.Tensor, ends: Sequence[int], max_side: int) -> tuple[Floats, Figures]:
    """Distances between neighbouring frames (N, 3, H, W), and what they say. ends: the frames at keyframes."""
    small = shrink(frames, max_side, features.SMALLEST_SIDE)
    distances = neighbour_distances(small)
    ways = segments(distances, ends)
    figures: Figures = {f"neighbours_{name}": value for name, value in asdict(smoothness(distances)).items()}
    figures |= {"directness": directness(distances, neighbour_distances(small[list(ends)]))}
    return distances, figures | {"ppl": ppl(ways), "pdv": pdv(ways)}


def learned_pace(network: lpips.Lpips, frames: torch.Tensor, ends: Sequence[int], max_side: int) -> Figures:
    """PPL and PDV with LPIPS, as papers report them."""
    distances = network.neighbour_distances(shrink(frames, max_side, lpips.SMALLEST_SIDE)).numpy()
    ways = segments(distances, ends)
    return {"lpips_ppl": ppl(ways), "lpips_pdv": pdv(ways)}


def endpoints(generated: torch.Tensor, floor: torch.Tensor, keyframes: torch.Tensor) -> Figures:
    """Means over the generated endpoints (K, 3, H, W), and the worst of their gaps to the floor."""
    each = [asdict(item) for item in fidelity(generated, floor, keyframes)]
    figures: Figures = {f"endpoints_{name}": fmean(item[name] for item in each) for name in each[0]}
    return figures | {"endpoints_worst_psnr_gap": max(item["psnr_gap"] for item in each)}


def shrink(pictures: torch.Tensor, max_side: int, smallest: int) -> torch.Tensor:
    """Pictures (N, 3, H, W) with the longest side at most `max_side`, averaged over areas.

    Very wide ones stay larger: the measure needs `smallest` pixels of the shorter side.
    """
    height, width = pictures.shape[-2:]
    scale = max(max_side / max(height, width), smallest / min(height, width))
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
