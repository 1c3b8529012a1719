"""Finished adapters under their inputs' digest, so that none is trained twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.outputs import atomic_file
from pipeline.training.checkpoints import TrainState, read_state, write_state


@dataclass(frozen=True)
class Finished:
    """Adapters that were trained before, each in a folder of its identity; they may be deleted at any time."""

    folder: Path

    def has(self, identity: str) -> bool:
        """Whether that adapter is there and whole."""
        try:
            with safe_open(self.adapter(identity), framework="pt") as file:
                whole = bool(list(file.keys()))
        except (SafetensorError, OSError):
            return False
        return whole and read_state(self._curves(identity)) is not None

    def adapter(self, identity: str) -> Path:
        """Its file."""
        return self.folder / identity / "adapter.safetensors"

    def state(self, identity: str) -> TrainState:
        """The step where its training ended, and its curves."""
        state = read_state(self._curves(identity))
        assert state is not None, f"{self._curves(identity)} went while it was in use"
        return state

    @contextmanager
    def writing(self, identity: str, state: TrainState) -> Iterator[Path]:
        """Yield the name to write the adapter to; its curves are kept beside it."""
        curves = {key: value for key, value in state.tensors.items() if key.startswith(("curve/", "validation/"))}
        with atomic_file(self.adapter(identity)) as path:
            write_state(self._curves(identity), TrainState(state.step, curves))
            yield path

    def _curves(self, identity: str) -> Path:
        return self.folder / identity / "curves.safetensors"
