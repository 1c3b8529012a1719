"""Reading our own prepared sets. Raw sets, which users write, are read by `pictures`, which forgives and explains."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class PreparedRow:
    """One picture of a prepared set, and its caption."""

    file_name: str
    text: str


def read_prepared(folder: Path) -> tuple[PreparedRow, ...]:
    """The rows of a prepared set's metadata.jsonl, in order."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").split("\n")
    return tuple(PreparedRow(**json.loads(line)) for line in lines if line)


def read_captions(folder: Path) -> dict[str, str]:
    """Caption by picture."""
    return {row.file_name: row.text for row in read_prepared(folder)}


def prepared_name(file_name: str) -> str:
    """The name that a raw picture has once it is prepared: `dawn.jpg` becomes `dawn.png`."""
    return f"{Path(file_name).stem}.png"


def read_prepared_pixels(folder: Path) -> Iterator[tuple[PreparedRow, torch.Tensor]]:
    """Each row with its picture (3, H, W) uint8; read with `datasets`, as anyone else could read it."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    # A cache of its own, for this once: `datasets` takes a changed picture with the same time stamp for the old one.
    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=cache)
        for listed, row in zip(read_prepared(folder), rows, strict=True):
            assert row["text"] == listed.text, f"{folder}: `datasets` reads rows in another order than metadata.jsonl"
            yield listed, torch.from_numpy(np.array(row["image"].convert("RGB"))).permute(2, 0, 1)
