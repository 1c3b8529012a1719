"""The same inputs give the same bytes: at any time, in any folder, however often training is checkpointed."""

from pathlib import Path

import torch

from tests.conftest import run_all
from tests.project import contents, edit, make_project, with_values

MADE = ("data", "models", "reports")


def test_a_second_run_elsewhere_gives_every_byte_again(
    ran: Path, tmp_path: Path, tiny_folders: dict[str, Path], database: str
) -> None:
    again = make_project(tmp_path / "somewhere else", tiny_folders["epsilon"], database)
    machine = {"machine.workers": "null", "machine.checkpoint_every": 2}
    edit(again / "params.yaml", lambda text: with_values(text, machine))
    torch.manual_seed(999)
    run_all(again)
    first, second = ({name: contents(place / name) for name in MADE} for place in (ran, again))
    for name in MADE:
        assert sorted(first[name]) == sorted(second[name])
        assert not [file for file in first[name] if first[name][file] != second[name][file]]
