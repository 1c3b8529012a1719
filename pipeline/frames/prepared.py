"""Reading our own prepared sets. Raw sets, which users write, are read by `pictures`, which forgives and explains."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.inputs import read_plain
from pipeline.outputs import naming, reading

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PreparedRow:
    """One picture of a prepared set, and its caption."""

    file_name: str
    text: str


def read_prepared(folder: Path) -> tuple[PreparedRow, ...]:
    """The rows of a prepared set's metadata.jsonl, in order.

    Raises:
        UserError: when it is damaged.
    """
    with reading(folder / "metadata.jsonl"):
        lines = read_plain(folder / "metadata.jsonl").decode("utf-8").split("\n")
        rows = tuple(PreparedRow(**json.loads(line)) for line in lines if line)
        for row in rows:
            if not isinstance(row.text, str) or row.file_name != Path(row.file_name).name:
                raise ValueError(f"{row} is no picture with a caption")
        if not rows:
            raise ValueError("no rows")
        return rows


def read_captions(folder: Path) -> dict[str, str]:
    """Caption by picture."""
    return {row.file_name: row.text for row in read_prepared(folder)}


def mask_path(folder: Path, file_name: str) -> Path:
    """The mask of a prepared picture, if it has one: white where an edit may change it.

    In a folder that `datasets` and other readers of imagefolders skip.
    """
    return folder / ".masks" / file_name


def prepared_name(file_name: str) -> str:
    """The name that a raw picture has once it is prepared: `dawn.jpg` becomes `dawn.png`."""
    return f"{Path(file_name).stem}.png"


def read_prepared_pixels(folder: Path) -> "Iterator[tuple[PreparedRow, torch.Tensor]]":
    """Each row with its picture (3, H, W) uint8; read with `datasets`, as anyone else could read it.

    Raises:
        UserError: when the set is damaged.
    """
    # Here, so that who only reads captions and names, as the stage `prepare`, starts without torch.
    import numpy as np
    import torch
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    listing = read_prepared(folder)
    # A cache of its own, for this once: `datasets` takes a changed picture with the same time stamp for the old one.
    room = naming(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory() as cache, room, reading(folder):
        rows = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=cache)
        shape: torch.Size | None = None
        for listed, row in zip(listing, rows, strict=True):
            if row["text"] != listed.text:
                raise ValueError("`datasets` reads rows in another order than metadata.jsonl")
            pixels = torch.from_numpy(np.array(row["image"].convert("RGB"))).permute(2, 0, 1)
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise ValueError(f"{listed.file_name} has another size than the pictures before it")
            yield listed, pixels
