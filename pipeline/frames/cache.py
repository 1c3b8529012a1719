"""Frames that were made before, under a digest of what they depend on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.outputs import atomic_folder, mark_used

FACTS = "made.json"


@dataclass(frozen=True)
class Made:
    """How a folder of frames was made. alphas: by segment. noise_std: of the keyframes' inverted noise."""

    alphas: list[list[float]]
    noise_std: float


@dataclass(frozen=True)
class FrameCache:
    """Folders of frames by digest; they may be deleted at any time."""

    folder: Path

    def has(self, digest: str) -> bool:
        """Whether the frames of that digest are there and whole."""
        return self._read(self.folder / digest) is not None

    def fetch(self, digest: str, target: Path, make: Callable[[Path], Made]) -> Made:
        """Fill `target`, which is not there yet, with the frames of that digest: known ones, or what `make` writes."""
        known = self.folder / digest
        if made := self._read(known):
            shutil.copytree(known / "frames", target)
            mark_used(known / FACTS)
            return made
        made = make(target)
        with atomic_folder(known) as partial:
            shutil.copytree(target, partial / "frames")
            facts = {**asdict(made), "files": sorted(path.name for path in target.iterdir())}
            (partial / FACTS).write_text(json.dumps(facts), encoding="utf-8")
        return made

    def _read(self, known: Path) -> Made | None:
        """What is known of a digest; None where that is nothing, or not whole."""
        try:
            facts = json.loads((known / FACTS).read_text(encoding="utf-8"))
            files = {path.name for path in (known / "frames").iterdir() if path.stat().st_size}
            return Made(facts["alphas"], facts["noise_std"]) if files == set(facts["files"]) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
