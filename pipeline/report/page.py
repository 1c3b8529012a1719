"""The page of the report: what it shows of each morph and set, read from the outputs of the other stages."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.adapters.store import INDEX, read_index
from pipeline.frames.variants import MORPH, read_facts
from pipeline.inputs import read_json
from pipeline.outputs import naming, reading
from pipeline.params import SetSpec
from pipeline.report.data_uris import data_uri, thumbnail_uri
from pipeline.report.figures import ENDS, PACE, Metrics, Row, table
from pipeline.report.plots import loss_plot
from pipeline.report.trainings import AdapterRow, adapter_row, read_trainings
from pipeline.report.viewer import FrameView, frame_views, stops_of, variants_of
from pipeline.sections import BaseSection, TrainSection

FRAME_SIDE = 384  # px, the most of a frame in the viewer
WIDE_SIDE = 2400  # px, the most of strips and grids
EDIT_FIGURES = ("scale", "edges_kept", "style_distance", "style_strangeness")


@dataclass(frozen=True)
class MorphPart:
    """A morph on the page.

    variants: labels of those that were made. initial: which of `frames` is visible at first. stops: which of them lie
    at keyframes.
    """

    key: str
    variants: tuple[str, ...]
    facts: Mapping[str, Any]
    clip: str
    strip: str
    curves: str
    keyframes: tuple[tuple[str, str], ...]
    frames: tuple[FrameView, ...]
    initial: int
    stops: tuple[int, ...]
    rows: list[Row]
    alphas: tuple[tuple[str, str], ...]
    digests: Mapping[str, str]


@dataclass(frozen=True)
class EditPart:
    """An edit on the page. adapters: with their weights, as text. figures: a row for each scale, by EDIT_FIGURES."""

    key: str
    set: str
    pictures: int
    adapters: str
    figures: Sequence[Mapping[str, float | None]]
    settings: Mapping[str, Any]
    base: str
    sheet: str
    curve: str


@dataclass(frozen=True)
class SetPart:
    """A set on the page. overrides: the names of those `params` that the set overrides."""

    key: str
    spec: SetSpec
    pictures: int
    samples: str
    loss: str
    adapters: tuple[AdapterRow, ...]
    params: Mapping[str, Any]
    overrides: frozenset[str]
    digests: Mapping[str, str]


def render(morphs: Sequence[MorphPart], edits: Sequence[EditPart], sets: Sequence[SetPart], base: BaseSection) -> str:
    """The page as HTML, with everything that it shows inside."""
    environment = Environment(
        loader=PackageLoader("pipeline.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html")
    return template.render(morphs=morphs, edits=edits, sets=sets, base=base, pace=PACE, ends=ENDS)


def morph_part(key: str, metrics: Metrics) -> MorphPart:
    """What the page shows of a morph. metrics: its figures, by variant."""
    folder = Path("data/morphs", key)
    facts = read_facts(folder)
    prepared, adapters = Path("data/prepared", facts["set"]), Path("models/adapters", facts["set"])
    names = sorted(path.name for path in (folder / MORPH.folder).glob("*.png"))
    frames = frame_views(
        facts, lambda number, variant: thumbnail_uri(folder / variant.folder / names[number], FRAME_SIDE)
    )
    stops = tuple(index for index, frame in enumerate(frames) if frame.number in stops_of(facts))
    index = read_index(adapters)
    with reading(adapters / INDEX):
        files = list(dict.fromkeys(index[keyframe["file_name"]] for keyframe in facts["keyframes"]))
    return MorphPart(
        key=key,
        variants=tuple(variant.label for variant in variants_of(facts)),
        facts=facts,
        clip=data_uri(folder / "morph.webp"),
        strip=thumbnail_uri(folder / "strip.png", WIDE_SIDE),
        curves=data_uri(Path("reports/smoothness", f"{key}.png")),
        keyframes=tuple(
            (thumbnail_uri(prepared / keyframe["file_name"], FRAME_SIDE), keyframe["text"])
            for keyframe in facts["keyframes"]
        ),
        frames=frames,
        # Halfway a morph is at its worst, and a keyframe shows nothing of it: a quarter of the way tells the variants
        # apart and is still like a picture.
        initial=-(-stops[1] // 4),
        stops=stops,
        rows=table(metrics, facts["style"] != "none"),
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


def set_part(key: str, spec: SetSpec, shared: TrainSection) -> SetPart:
    """What the page shows of a set. shared: the train params that the set may override."""
    prepared, adapters = Path("data/prepared", key), Path("models/adapters", key)
    trainings, rates = read_trainings(Path("reports/curves/sets", f"{key}.csv"))
    with tempfile.TemporaryDirectory() as folder, naming(Path(tempfile.gettempdir())):
        plot = Path(folder, "loss.png")
        loss_plot(trainings, rates, plot)
        loss = data_uri(plot)
    params, defaults = spec.train.model_dump(), shared.model_dump()
    return SetPart(
        key=key,
        spec=spec,
        pictures=len(list(prepared.glob("*.png"))),
        samples=thumbnail_uri(Path("reports/samples", f"{key}.png"), WIDE_SIDE),
        loss=loss,
        adapters=tuple(adapter_row(name, training, spec.train) for name, training in trainings.items()),
        params=params,
        overrides=frozenset(name for name, value in params.items() if value != defaults[name]),
        digests={
            "prepared pictures": folder_digest(prepared),
            **{f"adapter {path.name}": file_digest(path) for path in sorted(adapters.glob("*.safetensors"))},
        },
    )


def edit_part(key: str) -> EditPart:
    """What the page shows of an edit.

    Raises:
        UserError: when its edit.json is damaged.
    """
    folder = Path("data/edits", key)
    with reading(folder / "edit.json"):
        facts = read_json(folder / "edit.json")
        settings = dict(facts["settings"])
        control = settings.pop("control")
        settings |= {f"control {name}": value for name, value in (control or {}).items()}
        adapters = " + ".join(f"{name} {float(weight):g}" for name, weight in facts["adapters"].items())
        part = EditPart(
            key=key,
            set=str(facts["set"]),
            pictures=len(facts["pictures"]),
            adapters=adapters,
            figures=[
                {name: None if row[name] is None else float(row[name]) for name in EDIT_FIGURES}
                for row in facts["figures"]
            ],
            settings=settings,
            base=str(facts["base"]),
            sheet=thumbnail_uri(folder / "sheet.png", WIDE_SIDE),
            curve=data_uri(folder / "curve.png"),
        )
    return part


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def folder_digest(folder: Path) -> str:
    """A SHA-256 over the names and the contents of a folder's files, those of folders in it (masks) among them."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return f"sha256:{total.hexdigest()}"
