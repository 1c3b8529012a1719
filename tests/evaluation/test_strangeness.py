"""Whether the base knows pictures like the keyframes; its own samples are the measure."""

import numpy as np
import pytest
import torch

from pipeline.base.protocol import Base
from pipeline.evaluation.strangeness import strangeness
from pipeline.landscapes.painter import paint
from pipeline.landscapes.world import HELD_OUT, caption, draw_scene
from pipeline.report.figures import FOREIGN
from tests.declarations import ROOT
from tests.distances.samples import stack, wide
from tests.tiny import open_tiny


@pytest.fixture(scope="module")
def pocket() -> Base:
    return open_tiny(ROOT / "models/pocket")


@pytest.fixture(scope="module")
def found(pocket: Base) -> dict[str, float]:
    scenes = [draw_scene(HELD_OUT + 8_000_000 + number) for number in range(3)]
    paintings = torch.from_numpy(np.stack([paint(scene, 128, 128) for scene in scenes])).permute(0, 3, 1, 2) / 255
    captions = [caption(scene) for scene in scenes]
    photographs = stack(wide(name) for name in ("chelsea", "coffee", "rocket"))
    return {
        "paintings": strangeness(pocket, paintings, pocket.condition(captions)),
        "in batches": strangeness(pocket, paintings, pocket.condition(captions), batch=2),
        "photographs": strangeness(pocket, photographs, pocket.condition(["a cat", "a cup of coffee", "a rocket"])),
    }


def test_paintings_are_familiar_to_the_pocket_and_photographs_are_not(found: dict[str, float]) -> None:
    assert found["paintings"] == pytest.approx(1, abs=0.15)
    assert found["photographs"] > 1.5 * FOREIGN
    assert found["paintings"] < FOREIGN


def test_batches_change_nothing(found: dict[str, float]) -> None:
    assert found["in batches"] == pytest.approx(found["paintings"], rel=1e-3)
