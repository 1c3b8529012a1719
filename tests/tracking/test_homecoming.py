"""Runs of workers come home from databases of their own: all once, in one parent for one state."""

import os
import subprocess
from contextlib import chdir
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.tracking import bring_home, close_parent, worker_database
from tests.tracking.conftest import full_stage, offline_stage, open_book, section
from tests.tracking.stub import Stub

PARAMS = section(None)


def work(project: Path, place: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> Path:
    """A clone in which the stages of those names ran; its database."""
    place.mkdir(parents=True)
    clone = place / "clone"
    subprocess.run(["git", "clone", "-q", str(project), str(clone)], check=True)
    environment = worker_database(PARAMS, place / "mlflow.db")
    with monkeypatch.context() as changed, chdir(clone):
        changed.setenv("MLFLOW_TRACKING_URI", environment["MLFLOW_TRACKING_URI"])
        for name in names:
            if name == "full":
                full_stage(clone)
            else:
                offline_stage(None, name)
    return place / "mlflow.db"


def test_runs_of_two_workers_and_of_home_join_one_parent(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = work(migrated, tmp_path / "one", monkeypatch, "train@alps")
    two = work(migrated, tmp_path / "two", monkeypatch, "train@woodcut", "sample@woodcut")
    for _ in range(2):  # twice adds nothing
        assert bring_home(PARAMS, one) and bring_home(PARAMS, two)
    offline_stage(None, "morph@alps")
    book = open_book(migrated, "morphline")
    (parent,) = book.parents()
    assert parent.info.status == "FINISHED"
    names = [run.info.run_name for run in book.children(parent)]
    assert sorted(names) == ["morph@alps", "sample@woodcut", "train@alps", "train@woodcut"]
    for name in names:
        run = book.only(name)
        assert book.history(run, "loss") == [(0, 0), (1, 0.125), (2, 0.25)]
        assert run.data.params == {"caption": "a\u2028hill"} and run.info.status == "FINISHED"
    assert {f"train.{key}.caption" for key in ("alps", "woodcut")} <= set(parent.data.params)
    close_parent(PARAMS)
    assert set(book.parents()[0].data.tags["stages.ran"].split(", ")) == set(names)


def test_everything_of_a_run_comes_home_with_its_files_and_models(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = work(migrated, tmp_path / "one", monkeypatch, "full")
    assert bring_home(PARAMS, database) and bring_home(PARAMS, database)
    book = open_book(migrated, "morphline")
    (parent,) = book.parents()
    run = book.only("train@alps")
    assert book.history(run, "loss") == [(step, step / 8) for step in range(4)]
    assert parent.data.metrics == {"train.alps/final_loss": 1.0}
    with Image.open(next(book.artifacts(run).glob("images/*.png"))) as picture:
        assert picture.size == (4, 4)
    assert (book.artifacts(run) / "files/params.yaml").read_bytes() == (migrated / "params.yaml").read_bytes()
    previews = [sorted(path.name for path in book.artifacts(one).rglob("*preview*")) for one in (run, parent)]
    assert previews[0] == previews[1]
    for one in (run, parent):
        (shown,) = one.outputs.model_outputs
        model = book.client.get_logged_model(shown.model_id)
        assert (str(model.status), model.source_run_id) == ("READY", run.info.run_id)
    (file,) = Path(model.artifact_location).rglob("*.safetensors")
    assert file.read_bytes() == (tmp_path / "one/clone/dawn.safetensors").read_bytes()
    assert not list(tmp_path.glob("**/mlruns")), "nothing lands anywhere else"


def test_from_home_they_go_on_to_the_server_once(
    stub: Stub, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = work(project, tmp_path / "one", monkeypatch, "train@alps")
    named = section(stub.uri)
    for _ in range(2):
        assert bring_home(named, database)
    assert stub.history("train@alps", "loss") == [(0, 0), (1, 0.125), (2, 0.25)]
    assert len(stub.runs) == 2
    home = open_book(project, "morphline")
    assert stub.named("train@alps")["tags"]["morphline.run"] == home.only("train@alps").info.run_id


def test_a_home_that_cannot_be_written_keeps_the_runs_for_later(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    database = work(migrated, tmp_path / "one", monkeypatch, "train@alps")
    home = migrated / "mlflow.db"
    kept = home.read_bytes()
    home.write_bytes(b"no database at all")
    assert not bring_home(PARAMS, database)
    assert f"The runs of a worker stay in {database}" in caplog.text
    with pytest.raises(UserError, match="tracking database"):
        home.unlink()
        home.mkdir()
        worker_database(PARAMS, tmp_path / "another.db")
    home.rmdir()
    home.write_bytes(kept)
    assert bring_home(PARAMS, database)
    assert open_book(migrated, "morphline").only("train@alps").info.status == "FINISHED"


def test_a_worker_in_which_no_stage_began_leaves_nothing(migrated: Path, tmp_path: Path) -> None:
    worker_database(PARAMS, tmp_path / "idle.db")
    before = (migrated / "mlflow.db").read_bytes()
    assert bring_home(PARAMS, tmp_path / "idle.db") and bring_home(PARAMS, tmp_path / "never.db")
    assert (migrated / "mlflow.db").read_bytes() == before
    assert os.listdir(tmp_path).count("mlartifacts") == 0
