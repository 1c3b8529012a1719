from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands import export
from pipeline.errors import UserError


def test_every_adapter_of_a_set_is_written_once_and_nothing_is_replaced_without_force(
    ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ran)
    written = export.run("hills", tmp_path / "out", force=False)
    assert [path.name for path in written] == ["blue.safetensors", "großer See.safetensors", "red hill.safetensors"]
    assert all(key.startswith("lora_unet_") for path in written for key in load_file(path))
    before = written[0].read_bytes()
    with pytest.raises(UserError, match="exists already"):
        export.run("hills", tmp_path / "out", force=False)
    assert export.run("hills", tmp_path / "out", force=True) == written and written[0].read_bytes() == before
    assert [path.name for path in export.run("dots", tmp_path / "dots", force=False)] == ["set.safetensors"]


def test_a_set_that_is_not_there_is_told_with_those_that_are(project: Path) -> None:
    for command in (["export", "nope"], ["mix", "nope", "--out", "x.safetensors"]):
        answer = CliRunner().invoke(app, command)
        assert answer.exit_code == 1 and "There are: dots, hills" in answer.stderr, answer.output


def test_a_set_without_adapters_is_reported(project: Path) -> None:
    with pytest.raises(UserError, match="dvc repro train@hills"):
        export.run("hills", Path("out"), force=False)
