"""Finished adapters under their inputs' digest, so that none is trained twice."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.adapters.lora import lora_config, save_adapter
from pipeline.base.protocol import Base
from pipeline.outputs import atomic_file, mark_used
from pipeline.sections import TrainSection
from pipeline.training.checkpoints import TrainState, read_state, write_state
from pipeline.training.loop import Job
from pipeline.training.pack import AdapterPack


@dataclass(frozen=True)
class AdapterCache:
    """Adapters that were trained before, each in a folder of its job's digest; they may be deleted at any time."""

    folder: Path

    def has(self, digest: str) -> bool:
        """Whether that adapter is there and whole; if so, it counts as used now."""
        try:
            with safe_open(self.adapter(digest), framework="pt") as file:
                whole = bool(list(file.keys()))
        except (SafetensorError, OSError):
            return False
        if not whole or read_state(self._curves(digest)) is None:
            return False
        mark_used(self.adapter(digest))
        return True

    def adapter(self, digest: str) -> Path:
        """Its file."""
        return self.folder / digest / "adapter.safetensors"

    def state(self, digest: str) -> TrainState:
        """The step where its training ended, and its curves."""
        state = read_state(self._curves(digest))
        assert state is not None, f"{self._curves(digest)} was deleted while it was in use"
        return state

    def add(self, base: Base, job: Job, state: TrainState, source: Mapping[str, Any], settings: TrainSection) -> None:
        """Write a trained adapter with its curves, for this set and for any that needs it again.

        source: where the base comes from, for the file's notes.
        """
        pack = AdapterPack(base, [0], settings)
        pack.down[0], pack.up[0] = state.tensors["weight/down"], state.tensors["weight/up"]
        notes = {
            "base": {**source, "digest": base.digest},
            "captions": {example.name: example.caption for example in job.examples},
            "inputs": {example.name: example.digest for example in job.examples},
            "rank": settings.rank,
            "alpha": settings.alpha,
            "steps": state.step,
            "train": settings.model_dump(mode="json"),
        }
        curves = {key: value for key, value in state.tensors.items() if key.startswith(("curve/", "validation/"))}
        # The adapter last: where it is, all is there.
        with atomic_file(self.adapter(job.digest)) as path:
            write_state(self._curves(job.digest), TrainState(state.step, curves))
            save_adapter(path, pack.tensors(0), lora_config(settings), notes, base.adapter_prefix)

    def _curves(self, digest: str) -> Path:
        return self.folder / digest / "curves.safetensors"
