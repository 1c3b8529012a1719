"""ControlNets whose files are anything: each is used as it is or refused, in seconds."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.editing.control import control_digest, find_control_problems, open_control
from pipeline.sections import BaseSection, ControlSection
from tests.hostile.generators import changed_value, damaged, hostile, is_plain, json_values
from tests.hostile.test_bases import SECONDS, header_changed
from tests.tiny import save_tiny_net, section


@pytest.fixture
def folder(tmp_path: Path, tiny_folders: dict[str, Path]) -> Path:
    return save_tiny_net(tmp_path / "net", tiny_folders["epsilon"])


def used_or_refused(folder: Path, of: BaseSection) -> None:
    started = time.monotonic()
    control = ControlSection(
        source=str(folder), revision=None, sigma=1.0, low=0.4, high=0.8, scale=1.0, start=0.0, end=1.0
    )
    if (folder / "config.json").is_file():
        control = control.model_copy(update={"revision": control_digest(control)})
    problems = find_control_problems(control, of, "here")
    assert all(is_plain(str(problem)) for problem in problems)
    if not problems:
        net = open_control(control, torch.float32, torch.device("cpu"))
        net(torch.rand(1, 4, 8, 8), torch.tensor([3]), torch.rand(1, 4, 16), torch.rand(1, 3, 16, 16))
    assert time.monotonic() - started < SECONDS


def test_any_config_is_taken_or_refused(folder: Path, tiny_folders: dict[str, Path]) -> None:
    of = section(tiny_folders["epsilon"])
    whole = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    used_or_refused(folder, of)

    @hostile(12)
    @given(value=changed_value(whole) | json_values)
    def check(value: Any) -> None:
        (folder / "config.json").write_text(json.dumps(value), encoding="utf-8")
        used_or_refused(folder, of)

    check()


def test_any_weights_are_taken_or_refused(folder: Path, tiny_folders: dict[str, Path]) -> None:
    of = section(tiny_folders["epsilon"])
    file = folder / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()

    @hostile(8)
    @given(content=damaged(whole) | header_changed(whole) | st.binary(max_size=64))
    def check(content: bytes) -> None:
        file.write_bytes(content)
        used_or_refused(folder, of)

    check()
