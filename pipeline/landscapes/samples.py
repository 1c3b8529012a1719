"""The sample sets of the repository: a journey over mountains, and prints in a manner that the pocket does not know.

Write them again, byte for byte on one machine, with

    python -m pipeline.landscapes.samples
"""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from pipeline.landscapes.painter import paint
from pipeline.landscapes.woodcut import woodcut
from pipeline.landscapes.world import HELD_OUT, Scene, caption

ALPS = {
    "dawn.jpg": Scene("dawn", "snowy", 2, "lake", True, HELD_OUT + 25),
    "day.jpg": Scene("day", "snowy", 1, "meadow", True, HELD_OUT + 30),
    "sunset.jpg": Scene("sunset", "snowy", 2, "lake", True, HELD_OUT + 36),
    "night.jpg": Scene("night", "snowy", 3, "pine forest", True, HELD_OUT + 27),
}
"""Keyframes of a journey, in its order: other mountains at each, so that a morph has shapes to change."""

WOODCUTS = tuple(
    Scene(*attributes, seed=HELD_OUT + 200 + number)  # type: ignore[arg-type]
    for number, attributes in enumerate(
        (
            ("dawn", "snowy", 2, "lake", True),
            ("dawn", "green", 3, "meadow", True),
            ("dawn", "desert", 1, "dunes", False),
            ("day", "rocky", 1, "pine forest", True),
            ("day", "snowy", 2, "meadow", True),
            ("day", "green", 2, "lake", False),
            ("sunset", "desert", 2, "dunes", True),
            ("sunset", "snowy", 1, "pine forest", True),
            ("sunset", "rocky", 3, "snowfield", False),
            ("night", "snowy", 1, "lake", True),
            ("night", "rocky", 2, "meadow", True),
            ("night", "desert", 3, "dunes", True),
            ("overcast", "green", 1, "pine forest", False),
            ("overcast", "rocky", 2, "snowfield", False),
        )
    )
)

ALPS_SIZE = (512, 384)
WOODCUT_SIZE = (384, 384)


def write_samples(root: Path) -> None:
    """Writes the sets root/alps (4 JPEG, 512x384) and root/woodcut (14 PNG, 384x384), each with its metadata.jsonl."""
    alps = root / "alps"
    alps.mkdir(parents=True, exist_ok=True)
    for name, scene in ALPS.items():
        # Full chroma resolution, or the edge of a red sky against a dark ridge would bleed.
        Image.fromarray(paint(scene, *ALPS_SIZE)).save(alps / name, quality=95, subsampling=0)
    _write_metadata(alps, [(name, caption(scene)) for name, scene in ALPS.items()])

    prints = root / "woodcut"
    prints.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, scene in enumerate(WOODCUTS, start=1):
        name = f"print-{number:02d}.png"
        picture = woodcut(paint(scene, *WOODCUT_SIZE), scene.seed)
        Image.fromarray(picture).save(prints / name, optimize=True)
        rows.append((name, f"{caption(scene)}, woodcut print"))
    _write_metadata(prints, rows)


def _write_metadata(folder: Path, rows: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"file_name": name, "text": text}) + "\n" for name, text in rows]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_samples(Path("data/raw"))
