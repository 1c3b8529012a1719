"""The frozen stage that makes the pocket's ControlNet, on the pocket itself, for two steps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.editing.control import control_digest, find_control_problems, open_control
from pipeline.pocket.control import paint_edged
from pipeline.sections import ControlSection
from pipeline.stages import controlnet
from tests.declarations import ROOT
from tests.project import with_values


def test_the_stage_writes_a_controlnet_that_the_pocket_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"paintings": 16, "steps": 2, "batch": 2, "rate": 0.01, "ema": 0.0}
    text = with_values(
        (ROOT / "params.yaml").read_text(encoding="utf-8"), {f"controlnet.{k}": v for k, v in values.items()}
    )
    text = with_values(text, {"tracking.uri": "http://127.0.0.1:9", "tracking.required": "false"})
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/pocket").symlink_to(ROOT / "models/pocket", target_is_directory=True)
    card = tmp_path / "models/pocket-canny/README.md"
    card.parent.mkdir()
    card.write_text("the card")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    controlnet.run()
    assert {path.name for path in card.parent.iterdir()} == {*controlnet.OUTPUTS, "README.md"}
    assert sum(path.stat().st_size for path in card.parent.iterdir()) < 12 * 2**20
    assert json.loads((card.parent / "made.json").read_text())["params"]["steps"] == 2
    assert not list((tmp_path / ".work/controlnet").glob("*/")), "checkpoints were left"
    section = ControlSection(
        source="models/pocket-canny", revision=None, sigma=1.0, low=0.2, high=0.4, scale=1.0, start=0.0, end=1.0
    )
    section = section.model_copy(update={"revision": control_digest(section)})
    assert find_control_problems(section, controlnet.POCKET, "here") == []
    net = open_control(section, torch.float32, torch.device("cpu"))
    down, middle = net(
        torch.randn(1, 16, 16, 16), torch.tensor([500]), torch.randn(1, 64, 128), torch.ones(1, 3, 128, 128),
        return_dict=False,
    )  # fmt: skip
    assert all(bool(each.any()) for each in (*down, middle)), "it has learned nothing"


def test_edges_lie_on_the_painting_and_are_many_or_few() -> None:
    shares = []
    for index in range(8):
        picture, edges, caption = paint_edged(index, seed=2)
        assert picture.shape == (128, 128, 3) and edges.shape == (128, 128) and edges.dtype == bool and caption
        light = picture.astype(float).mean(-1)
        change = np.hypot(*np.gradient(light))
        assert change[edges].mean() > 2 * change.mean()
        shares.append(edges.mean())
    assert 0 < min(shares) < 0.5 * max(shares)
