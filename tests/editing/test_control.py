"""ControlNets of the Hub."""

from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel

from pipeline.editing import control
from pipeline.editing.control import find_control_problems, open_control
from pipeline.errors import Problem, UserError
from pipeline.sections import ControlSection
from tests.hub import COMMIT, in_cache
from tests.tiny import save_tiny_net, section

HUB = ControlSection(source="owner/name", revision=COMMIT, sigma=1.0, low=0.4, high=0.8, scale=1.0, start=0.0, end=1.0)


@pytest.fixture
def folder(tmp_path: Path, tiny_folders: dict[str, Path]) -> Path:
    return save_tiny_net(tmp_path / "net", tiny_folders["epsilon"])


def test_one_in_the_cache_needs_no_network(
    folder: Path, tmp_path: Path, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_cache(folder, tmp_path / "cache", monkeypatch)
    assert find_control_problems(HUB, section(tiny_folders["epsilon"]), "here") == []
    opened = open_control(HUB, torch.float32, torch.device("cpu"))
    expected = ControlNetModel.from_pretrained(folder)
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in opened.state_dict().items())


@pytest.mark.parametrize("lacking", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_one_of_which_the_cache_lacks_a_file_is_asked_for(
    folder: Path, tmp_path: Path, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    (folder / lacking).unlink()
    in_cache(folder, tmp_path / "cache", monkeypatch)

    def away(*arguments: object) -> Path:
        raise UserError(Problem("params.yaml: base.source", "the Hub was asked", "."))

    monkeypatch.setattr(control, "fetch", away)
    (problem,) = find_control_problems(HUB, section(tiny_folders["epsilon"]), "here")
    assert (problem.where, problem.found) == ("here.source", "the Hub was asked")
