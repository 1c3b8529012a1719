import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline.stages import prepare
from tests.project import DOTS, HEIGHT, HILLS, ROOT, WIDTH


def test_every_row_has_a_picture_of_the_size_asked_for_and_a_line_in_the_ledger(ran: Path) -> None:
    for key, captions in (("hills", HILLS), ("dots", DOTS)):
        folder = ran / "data/prepared" / key
        names = [f"{Path(name).stem}.png" for name in captions]
        assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "metadata.jsonl", "ledger.log"])
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
        assert rows == [{"file_name": name, "text": text} for name, text in zip(names, captions.values(), strict=True)]
        for name in names:
            with Image.open(folder / name) as image:
                assert (image.size, image.mode) == ((WIDTH, HEIGHT), "RGB")
        ledger = [json.loads(line) for line in (folder / "ledger.log").read_text(encoding="utf-8").splitlines()]
        assert [entry["source"] for entry in ledger] == list(captions)


def test_the_ledger_is_tracked(
    project: Path, database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    prepare.run("hills")
    assert not caplog.records, "something was not tracked"
    client = MlflowClient(database)
    monkeypatch.chdir(Path(database.removeprefix("sqlite:///")).parent)  # its artifacts' locations are relative to it
    experiment = client.get_experiment_by_name("morphline")
    run = client.search_runs([experiment.experiment_id], "attributes.run_name = 'prepare@hills'", max_results=1)[0]
    assert "ledger.log" in [artifact.path for artifact in client.list_artifacts(run.info.run_id)]


def test_it_starts_without_torch() -> None:
    """Whose import takes longer than a small set, in the stage and again in each process that it starts."""
    code = "import sys, pipeline.stages.prepare; print('torch' in sys.modules, 'PIL' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout == "False True\n"
