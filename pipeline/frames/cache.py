"""Frames that were made before, under a digest of what they depend on."""

import json
import shutil
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
        """Whether those frames are there and whole; if so, they count as used now."""
        if self._read(digest) is None:
            return False
        mark_used(self.folder / digest / FACTS)
        return True

    def copy(self, digest: str, target: Path) -> Made:
        """Fill `target`, which is not there yet, with the frames of a digest that it `has`."""
        made = self._read(digest)
        assert made is not None, f"{self.folder / digest} was deleted while it was in use"
        shutil.copytree(self.folder / digest / "frames", target)
        return made

    def add(self, digest: str, frames: Path, made: Made) -> None:
        """Keep a copy of a folder of frames."""
        with atomic_folder(self.folder / digest) as partial:
            shutil.copytree(frames, partial / "frames")
            facts = {**asdict(made), "files": sorted(path.name for path in frames.iterdir())}
            (partial / FACTS).write_text(json.dumps(facts), encoding="utf-8")

    def _read(self, digest: str) -> Made | None:
        """What is known of a digest; None where that is nothing, or not whole."""
        known = self.folder / digest
        try:
            facts = json.loads((known / FACTS).read_text(encoding="utf-8"))
            files = {path.name for path in (known / "frames").iterdir() if path.stat().st_size}
            return Made(facts["alphas"], facts["noise_std"]) if files == set(facts["files"]) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
