from pathlib import Path

import pytest

from pipeline.base.protocol import Base
from pipeline.training import loop
from pipeline.training.history import curves_of
from pipeline.training.loop import Callbacks, Job
from tests.training.jobs import Fresh, examples, trained
from tests.training.settings import SETTINGS


def test_of_many_pictures_some_at_even_distances_are_measured_and_all_are_learned_from(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MEASURED", 4)
    base: Base = fresh_tiny()
    many = Job("many", "identity", examples(base, count=10))
    seen = []
    callbacks = Callbacks(validation=lambda job, step, losses: seen.append((step, sorted(losses))))
    settings = SETTINGS.model_copy(update={"steps": 5, "batch": 2, "validate_every": None})
    states = trained(base, tmp_path, settings, [many], callbacks=callbacks)
    assert seen == [(step, ["0.png", "2.png", "5.png", "7.png"]) for step in (0, 5)]
    assert [len(losses) for losses in curves_of(states["many"], settings).validation.values()] == [4, 4]

    assert [example.name for example in Job("few", "identity", many.examples[:4]).measured] == [
        "0.png", "1.png", "2.png", "3.png",
    ]  # fmt: skip
    chosen = Job("held out", "identity", many.examples[:2], many.examples[2:])
    assert chosen.measured == many.examples[2:], "who names them gets all of them"
