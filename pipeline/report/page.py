"""The parts of the report's page: what it shows of a morph and of a set, read from the outputs of the other stages."""

import csv
import hashlib
import json
import tempfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.adapters.store import read_index
from pipeline.params import SetSpec, TrainSection
from pipeline.pictures.metadata import read_rows
from pipeline.report.embedding import embedded, embedded_smaller
from pipeline.report.figures import VARIANTS, Line, Metrics, table
from pipeline.report.plots import Training, loss_plot

FOLDERS = dict(zip(VARIANTS, ("frames", "no-lora", "cross-fade"), strict=True))

MOST_FRAMES = 120  # to scrub through; of a longer morph every second one, or third, and all at keyframes
FRAME_SIDE = 384  # px, the most that a frame is shown at
WIDE_SIDE = 2400  # px, the most of strips and grids


@dataclass(frozen=True)
class Shown:
    """One frame to scrub to. place: its position and alpha in words. said: the caption, or the two it lies between.
    pictures: as data URIs, in the order of VARIANTS."""

    number: int
    place: str
    said: str
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class MorphPart:
    """A morph on the page. first: the frame of `frames` that is shown first. stops: those at keyframes."""

    key: str
    facts: Mapping[str, Any]
    clip: str
    strip: str
    curves: str
    keyframes: tuple[tuple[str, str], ...]
    frames: tuple[Shown, ...]
    first: int
    stops: tuple[int, ...]
    lines: list[Line]
    alphas: tuple[tuple[str, str], ...]
    digests: Mapping[str, str]


@dataclass(frozen=True)
class AdapterRow:
    """An adapter of a set: how its training went. before, after: the loss at fixed noise at its start and end."""

    name: str
    steps: int
    before: float | None
    after: float | None
    ended: str


@dataclass(frozen=True)
class SetPart:
    """A set on the page. own: the names of those `params` that it overrides."""

    key: str
    spec: SetSpec
    pictures: int
    samples: str
    loss: str
    adapters: tuple[AdapterRow, ...]
    params: Mapping[str, Any]
    own: frozenset[str]
    digests: Mapping[str, str]


def morph_part(key: str, metrics: Metrics) -> MorphPart:
    """What the page shows of a morph. metrics: its figures, by variant."""
    folder = Path("data/morphs", key)
    facts = json.loads((folder / "morph.json").read_text(encoding="utf-8"))
    prepared, adapters = Path("data/prepared", facts["set"]), Path("models/adapters", facts["set"])
    frames = shown_frames(folder, facts)
    stops = tuple(place for place, frame in enumerate(frames) if frame.number in _stops(facts))
    index = read_index(adapters)
    files = list(dict.fromkeys(index[item["file_name"]] for item in facts["keyframes"]))
    return MorphPart(
        key=key,
        facts=facts,
        clip=embedded(folder / "morph.webp"),
        strip=embedded_smaller(folder / "strip.png", WIDE_SIDE),
        curves=embedded(Path("reports/smoothness", f"{key}.png")),
        keyframes=tuple(
            (embedded_smaller(prepared / item["file_name"], FRAME_SIDE), item["text"]) for item in facts["keyframes"]
        ),
        frames=frames,
        first=stops[1] // 2,
        stops=stops,
        lines=table(metrics),
        alphas=tuple(
            (f"{label}, segment {number}", ", ".join(f"{alpha:g}" for alpha in segment))
            for label, segments in facts["alphas"].items()
            for number, segment in enumerate(segments, start=1)
        ),
        digests={
            "base": facts["base"],
            f"set {facts['set']}, prepared": folder_digest(prepared),
            **{f"adapter {name}": file_digest(adapters / name) for name in files},
        },
    )


def shown_frames(folder: Path, facts: Mapping[str, Any]) -> tuple[Shown, ...]:
    """The frames to scrub through: each once, in every variant."""
    count, stops = len(facts["positions"]), _stops(facts)
    every = -(-count // MOST_FRAMES)
    names = sorted(path.name for path in (folder / FOLDERS["morph"]).glob("*.png"))
    return tuple(
        Shown(
            number,
            *place_of(number, facts),
            tuple(embedded_smaller(folder / FOLDERS[variant] / names[number], FRAME_SIDE) for variant in VARIANTS),
        )
        for number in range(count)
        if number % every == 0 or number in stops
    )


def place_of(number: int, facts: Mapping[str, Any]) -> tuple[str, str]:
    """Where a frame lies, in words, and what the captions say there."""
    stops, texts = _stops(facts), [item["text"] for item in facts["keyframes"]]
    position = f"position {facts['positions'][number]:.4g}"
    if number in stops:
        return f"{position}, keyframe", texts[stops.index(number)]
    segment = bisect_right(stops, number) - 1
    alpha = facts["alphas"]["morph"][segment][number - stops[segment]]
    following = texts[(segment + 1) % len(texts)]  # of a loop the last segment leads to the first keyframe
    return f"{position}, alpha {alpha:.4g}", f"{texts[segment]} → {following}"


def set_part(key: str, spec: SetSpec, shared: TrainSection) -> SetPart:
    """What the page shows of a set. shared: the train params that it may override."""
    prepared, adapters = Path("data/prepared", key), Path("models/adapters", key)
    trainings, rates = read_trainings(Path("reports/curves/sets", f"{key}.csv"))
    with tempfile.TemporaryDirectory() as folder:
        plot = Path(folder, "loss.png")
        loss_plot(trainings, rates, plot)
        loss = embedded(plot)
    params, usual = spec.train.model_dump(), shared.model_dump()
    return SetPart(
        key=key,
        spec=spec,
        pictures=len(read_rows(prepared)),
        samples=embedded_smaller(Path("reports/samples", f"{key}.png"), WIDE_SIDE),
        loss=loss,
        adapters=tuple(adapter_row(name, training, spec.train) for name, training in trainings.items()),
        params=params,
        own=frozenset(name for name, value in params.items() if value != usual[name]),
        digests={
            "prepared pictures": folder_digest(prepared),
            **{f"adapter {path.name}": file_digest(path) for path in sorted(adapters.glob("*.safetensors"))},
        },
    )


def adapter_row(name: str, training: Training, settings: TrainSection) -> AdapterRow:
    """How the training of an adapter went, and why it ended."""
    losses = list(training.validation.values())
    return AdapterRow(
        name=name,
        steps=len(training.losses),  # type: ignore[arg-type]
        before=losses[0] if losses else None,
        after=losses[-1] if losses else None,
        ended=why_ended(len(training.losses), losses, settings),  # type: ignore[arg-type]
    )


def why_ended(steps: int, validation: Sequence[float], settings: TrainSection) -> str:
    """Why a training of so many steps ended. validation: its losses at fixed noise, in order, as in the curves."""
    if steps >= settings.steps:
        return "all steps done"
    # The curves have six digits.
    if settings.target_loss is not None and validation and validation[-1] <= settings.target_loss * (1 + 1e-5):
        return f"the loss at fixed noise was down to {settings.target_loss:g}"
    return f"{settings.patience} losses at fixed noise without a new lowest"


def read_trainings(path: Path) -> tuple[dict[str, Training], list[float]]:
    """Each adapter's training from a set's curves, and the learning rate at each step of the longest."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [column.removeprefix("loss ") for column in rows[0] if column.startswith("loss ")]
    trainings = {
        name: Training(
            losses=[float(row[f"loss {name}"]) for row in rows if row[f"loss {name}"]],
            validation={
                int(row["step"]): float(row[f"validation loss {name}"])
                for row in rows
                if row[f"validation loss {name}"]
            },
        )
        for name in names
    }
    return trainings, [float(row["learning_rate"]) for row in rows]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def folder_digest(folder: Path) -> str:
    """A SHA-256 over the names and the contents of a folder's files."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        total.update(f"{path.name}\0{file_digest(path)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _stops(facts: Mapping[str, Any]) -> list[int]:
    return [item["frame"] for item in facts["keyframes"]]
