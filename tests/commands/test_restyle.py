"""`morphline restyle`: what it adds to params.yaml, and what it leaves there."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands import restyle
from pipeline.params import load_params
from tests.project import contents


@pytest.fixture
def reproduced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would be made; it fails, as it does where an adapter is not there."""
    targets = list[str]()

    def reproduce(target: str) -> int:
        targets.append(target)
        return 255

    monkeypatch.setattr(restyle, "reproduce", reproduce)
    return targets


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        (["dots:9"], "adapters.dots: found 9.0. It should be less than or equal to 4."),
        (["dots:0.5", "dots:0.3"], "dots: it is named twice"),
        (
            ["/tmp/ink.safetensors:0.5"],
            "/tmp/ink.safetensors: it does not lie in models/loras. Copy it",
        ),
        (["../ink"], "It should be a set's key, a set/picture, or the name of a .safetensors file in models/loras."),
    ],
)
def test_adapters_that_cannot_be_meant_are_refused_and_nothing_is_added(
    project: Path, reproduced: list[str], adapters: list[str], said: str
) -> None:
    before = contents(project)
    answer = CliRunner().invoke(app, ["restyle", "hills", *adapters])
    assert answer.exit_code == 1 and said in answer.stderr and "Traceback" not in answer.output, answer.output
    assert contents(project) == before and reproduced == []


def test_a_file_may_be_named_by_its_path_and_is_taken_back_where_it_is_not_there(
    project: Path, reproduced: list[str]
) -> None:
    """Else `check` would refuse it before every stage."""
    params = project / "params.yaml"
    before = params.read_bytes()
    answer = CliRunner().invoke(app, ["restyle", "hills", "models/loras/ink.safetensors:0.5"])
    assert answer.exit_code == 1 and "edits.hills-ink-safetensors.adapters: models/loras/ink" in answer.stderr
    assert reproduced == ["edit@hills-ink-safetensors"] and params.read_bytes() == before
    answer = CliRunner().invoke(app, ["restyle", "hills", "dots:0.5"])  # another failure takes nothing back
    assert answer.exit_code == 1 and load_params().edits["hills-dots"].adapters == {"dots": 0.5}
