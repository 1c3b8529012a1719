"""What the project has made so far: its morphs, edits and sets, and their files."""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.errors import UserError
from pipeline.frames.variants import MORPH, VARIANTS, read_facts
from pipeline.inputs import read_json
from pipeline.outputs import reading
from pipeline.params import Params
from pipeline.report.figures import Row, table
from pipeline.report.viewer import FrameView, frame_views, stops_of, variants_of

MORPHS, EDITS, SETS = Path("data/morphs"), Path("data/edits"), Path("data/prepared")
ADAPTERS = Path("models/adapters")
SIDE = 384  # px, the most of a frame or of a picture of a set


@dataclass(frozen=True)
class Card:
    """A thing in the gallery. ready: whether its result is there. version: changes with it, for addresses."""

    kind: str
    key: str
    ready: bool
    told: str
    version: int


def cards(params: Params) -> list[Card]:
    """All morphs, edits and sets, the newest results of each kind first."""
    found = []
    for key, morph in params.morphs.items():
        style = "" if morph.style == "none" else f", in the style of {morph.style}"
        found.append(_card("morph", key, MORPHS / key / "morph.json", f"{len(morph.keyframes)} pictures{style}"))
    for key, edit in params.edits.items():
        names = " and ".join(edit.adapters)
        found.append(_card("edit", key, EDITS / key / "edit.json", f"{edit.set}{f' with {names}' if names else ''}"))
    for key, one in params.sets.items():
        told = "an adapter for each picture" if one.adapter == "image" else "one adapter for all: a style"
        found.append(_card("set", key, SETS / key / "metadata.jsonl", told))
    kinds = ("morph", "edit", "set")
    return sorted(found, key=lambda card: (kinds.index(card.kind), -card.version))


def _card(kind: str, key: str, made: Path, told: str) -> Card:
    try:
        return Card(kind, key, True, told, made.stat().st_mtime_ns // 1_000_000)
    except OSError:
        return Card(kind, key, False, told, 0)


@dataclass(frozen=True)
class MorphPage:
    """What the page of a morph shows. rows: of its figures; none where it was not measured. adapters: their files."""

    key: str
    variants: tuple[str, ...]
    facts: dict[str, Any]
    frames: tuple[FrameView, ...]
    stops: tuple[int, ...]
    initial: int
    rows: list[Row]
    adapters: tuple[str, ...]
    version: int


def morph_page(key: str) -> MorphPage:
    """Raises UserError where the morph is not made, or damaged."""
    folder = MORPHS / key
    facts = read_facts(folder)
    version = (folder / "morph.json").stat().st_mtime_ns // 1_000_000
    made = variants_of(facts)

    def address(number: int, variant: Any) -> str:
        return f"/media/morphs/{key}/{variant.folder}/{number}.webp?v={version}"

    frames = frame_views(facts, address)
    stops = tuple(index for index, frame in enumerate(frames) if frame.number in stops_of(facts))
    return MorphPage(
        key=key, variants=tuple(variant.label for variant in made), facts=facts, frames=frames, stops=stops,
        initial=-(-stops[1] // 4), rows=figures(key, facts), adapters=adapters_of(str(facts["set"])), version=version,
    )  # fmt: skip


def figures(key: str, facts: dict[str, Any]) -> list[Row]:
    """The figures of a morph; none where it was not measured since it was made."""
    path = Path("reports/metrics", f"{key}.json")
    try:
        if path.stat().st_mtime < (MORPHS / key / "morph.json").stat().st_mtime - 1:
            return []
        return table(read_json(path), facts["style"] != "none")
    except (OSError, ValueError, KeyError, UserError):
        return []


def adapters_of(key: str) -> tuple[str, ...]:
    """Names of the adapter files of a set."""
    return tuple(sorted(path.name for path in (ADAPTERS / key).glob("*.safetensors")))


def frame_file(key: str, folder: str, number: int) -> Path:
    """A frame of a morph. Raises KeyError where there is none."""
    if folder not in {variant.folder for variant in VARIANTS}:
        raise KeyError(folder)
    for path in (MORPHS / key / folder / f"{number:0{digits}}.png" for digits in (4, 5, 6)):
        if path.is_file():
            return path
    raise KeyError(number)


def edit_facts(key: str) -> dict[str, Any]:
    """What the page of an edit shows.

    Raises:
        UserError: when its edit.json is damaged.
    """
    path = EDITS / key / "edit.json"
    with reading(path):
        facts = read_json(path)
        return {"set": str(facts["set"]), "adapters": dict(facts["adapters"]), "settings": dict(facts["settings"])}


def small(path: Path, side: int = SIDE) -> bytes:
    """A picture as a WebP of at most `side` pixels.

    Raises:
        UserError: when it is damaged.
    """
    with reading(path), Image.open(path) as image:
        picture = image.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=90, method=2)
    return buffer.getvalue()


def pictures_of(key: str) -> list[str]:
    """Names of a set's prepared pictures."""
    return sorted(path.name for path in (SETS / key).glob("*.png"))


class _Pipe(io.RawIOBase):
    """A file that can only be written on, and gives what was written away."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.content += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self.content)
        self.content.clear()
        return taken


def zipped_frames(key: str) -> Iterator[bytes]:
    """The morph's frames as a ZIP, a frame at a time. PNGs are small already: they are stored as they are."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted((MORPHS / key / MORPH.folder).glob("*.png")):
            archive.write(path, f"{key}/{path.name}")
            yield pipe.take()
    yield pipe.take()


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """What two morphs do not have in common: name, the one's value, the other's."""
    names = ("set", "style", "base")
    pairs = [(name, first[name], second[name]) for name in names]
    pairs += [
        (name, first["settings"].get(name), second["settings"].get(name))
        for name in dict.fromkeys([*first["settings"], *second["settings"]])
    ]
    texts = [[keyframe["text"] or "(none)" for keyframe in facts["keyframes"]] for facts in (first, second)]
    pairs.append(("captions", "; ".join(texts[0]), "; ".join(texts[1])))
    return [(name, one, other) for name, one, other in pairs if one != other]


def side_by_side(first: MorphPage, second: MorphPage) -> list[FrameView]:
    """The frames of two morphs at the same share of the way, as many as the longer has."""
    count = max(len(first.frames), len(second.frames))
    views = []
    for number in range(count):
        share = number / max(count - 1, 1)
        one, other = (page.frames[round(share * (len(page.frames) - 1))] for page in (first, second))
        caption = one.caption if one.caption == other.caption else f"{one.caption} | {other.caption}"
        pictures, alphas = (one.pictures[0], other.pictures[0]), (one.alphas[0], other.alphas[0])
        views.append(FrameView(number, f"{share:.0%} of the way", caption, alphas, pictures))
    return views
