"""Raw pictures of any format as training pictures of one size, and a ledger of what was done to each."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import NotRequired, TypedDict

from PIL import Image

from pipeline.errors import Problem, UserError
from pipeline.frames.prepared import mask_path, prepared_name
from pipeline.inputs import open_plain
from pipeline.outputs import atomic_folder
from pipeline.parallel import count_workers, parallel_map
from pipeline.pictures.colours import to_srgb
from pipeline.pictures.metadata import METADATA, leaves_folder, link_fault, stream_rows
from pipeline.pictures.reading import UnreadablePicture, load_picture
from pipeline.pictures.rows import Row
from pipeline.sections import PrepareSection

# Not .jsonl: `load_dataset(folder)` goes by the most common suffix, and beside a single picture would choose JSON.
LEDGER = "ledger.log"

_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}

Window = tuple[float, float, float, float]
"""left, top, right, bottom in pixels of the upright picture."""


class LedgerEntry(TypedDict):
    """What was done to one picture. size: of the upright source, in pixels; crop: the window of it that was kept;
    scale: prepared over source pixels, above 1 where the picture was enlarged; mask: its source, if there is one."""

    file_name: str
    source: str
    sha256: str
    format: str
    mode: str
    size: list[int]
    done: list[str]
    crop: list[float]
    scale: float
    upscaled: bool
    mask: NotRequired[str]


def prepare_set(raw: Path, out: Path, settings: PrepareSection, workers: int | None = None) -> None:
    """Write a raw set as a prepared one: PNG pictures of one size, metadata.jsonl and the ledger, one JSON object a
    line in the order of the rows. `out` appears whole or not at all; the bytes do not depend on `workers`
    (None: one process a core).

    Raises:
        UserError: for faulty metadata, pictures that are links to elsewhere, or the first that cannot be read.
    """
    rows = stream_rows(raw)
    # `check` has said the same, and the folder may have changed since.
    named = (name for row in rows for name in (row.file_name, row.mask) if name is not None)
    if leaving := [name for name in named if leaves_folder(raw, name)]:
        raise UserError(*(Problem(str(raw / METADATA), *link_fault(name)) for name in leaving))
    with atomic_folder(out) as folder:
        prepare = partial(_prepare_file, raw, folder, settings)
        processes = count_workers(workers, len(rows), alone_below=16)
        entries = parallel_map(prepare, rows, processes, label=f"prepare {raw.name}")
        with (
            (folder / METADATA).open("w", encoding="utf-8", newline="\n") as metadata,
            (folder / LEDGER).open("w", encoding="utf-8", newline="\n") as ledger,
        ):
            for row, entry in zip(rows, entries, strict=True):
                prepared = {"file_name": entry["file_name"], "text": row.text}
                metadata.write(json.dumps(prepared, ensure_ascii=False) + "\n")
                ledger.write(json.dumps(entry, ensure_ascii=False) + "\n")


def prepare_picture(path: Path, row: Row, settings: PrepareSection) -> tuple[Image.Image, LedgerEntry]:
    """One picture as RGB of exactly (settings.width, settings.height), without metadata, and its ledger entry.

    The first frame, upright, in sRGB over settings.background, cropped to the target aspect ratio about the row's
    box, its focus or the centre, and resized in one step.

    Raises:
        UserError: when the file is not a picture that can be read, or is larger than settings.max_megapixels.
    """
    try:
        picture = load_picture(path, settings.max_megapixels)
    except UnreadablePicture as error:
        raise UserError(Problem(str(path), error.found, error.fix)) from None
    changes = []
    if picture.frames is None:
        changes.append("frame 1; the others could not be counted")
    elif picture.frames > 1:
        changes.append(f"frame 1 of {picture.frames}")
    if picture.orientation is None:
        changes.append("unreadable EXIF ignored, taken as upright")
    elif picture.orientation != 1:
        changes.append(f"turned upright (EXIF orientation {picture.orientation})")
    image, colour_changes = to_srgb(picture.image, settings.background)
    changes += colour_changes
    window = crop_window(image.size, (settings.width, settings.height), row)
    scale = settings.width / (window[2] - window[0])
    resampling = _FILTERS[settings.resample]
    if scale > 1 and resampling is Image.Resampling.BOX:
        resampling = Image.Resampling.BICUBIC  # an average over less than a pixel would show blocks
        changes.append("bicubic, because area is for shrinking")
    prepared = image.resize((settings.width, settings.height), resampling, box=window)
    with open_plain(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return prepared, LedgerEntry(
        file_name=prepared_name(row.file_name),
        source=row.file_name,
        sha256=digest,
        format=picture.format,
        mode=picture.mode,
        size=list(image.size),
        done=changes,
        crop=[round(edge, 3) for edge in window],
        scale=round(scale, 6),
        upscaled=scale > 1,
    )


def crop_window(size: tuple[int, int], target: tuple[int, int], row: Row) -> Window:
    """The part of a picture of `size` (width, height) to keep for a prepared picture of size `target`.

    The largest window of the target's aspect ratio, about the row's focus or the centre. For a row with a box, the
    smallest that contains the box, or the largest that the picture allows. Moved so that it lies within the picture
    and, where possible, onto whole pixels.
    """
    width, height = size
    widest = min(width, height * target[0] / target[1])
    x, y = row.focus or (0.5, 0.5)
    if row.box:
        left, top, right, bottom = row.box
        x, y = (left + right) / 2, (top + bottom) / 2
        needed = max((right - left) * width, (bottom - top) * height * target[0] / target[1], 1.0)
        widest = min(widest, needed)
    crop_width, crop_height = widest, min(height, widest * target[1] / target[0])
    left = min(max(round(x * width - crop_width / 2), 0), width - crop_width)
    top = min(max(round(y * height - crop_height / 2), 0), height - crop_height)
    return left, top, left + crop_width, top + crop_height


def _prepare_file(raw: Path, folder: Path, settings: PrepareSection, row: Row) -> LedgerEntry:
    image, entry = prepare_picture(raw / row.file_name, row, settings)
    image.save(folder / entry["file_name"], format="PNG")
    if row.mask is not None:
        mask = _prepare_mask(raw / row.mask, entry, settings)
        path = mask_path(folder, entry["file_name"])
        path.parent.mkdir(exist_ok=True)
        mask.save(path, format="PNG")
        entry["mask"] = row.mask
    return entry


def _prepare_mask(path: Path, entry: LedgerEntry, settings: PrepareSection) -> Image.Image:
    """A mask as grey, cropped and resized as its picture was. Raises UserError as `prepare_picture` does, and for one
    of another size."""
    try:
        image, _ = to_srgb(load_picture(path, settings.max_megapixels).image, (0, 0, 0))
    except UnreadablePicture as error:
        raise UserError(Problem(str(path), error.found, error.fix)) from None
    if list(image.size) != entry["size"]:
        found = f"{image.width}x{image.height} pixels, and its picture has {entry['size'][0]}x{entry['size'][1]}"
        raise UserError(Problem(str(path), found, "Make it as large as the picture as it is seen."))
    # An average, never above white or below black, as a sharper filter would be beside an edge.
    filter = Image.Resampling.BILINEAR if entry["upscaled"] else Image.Resampling.BOX
    left, top, right, bottom = entry["crop"]
    return image.convert("L").resize((settings.width, settings.height), filter, box=(left, top, right, bottom))
