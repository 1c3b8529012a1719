from pathlib import Path

import pytest
from safetensors.torch import load_file

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


def test_a_set_without_adapters_is_reported(project: Path) -> None:
    with pytest.raises(UserError, match="dvc repro train@hills"):
        export.run("hills", Path("out"), force=False)
