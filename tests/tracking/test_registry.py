"""Registered models on a real server: the version, its model and its picture arrive, and the alias is the server's."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient

from pipeline.commands import promote
from pipeline.params import load_params
from pipeline.tracking import sync
from pipeline.tracking.registry import MODEL_ID, STATE, champion, picture_address, versions
from tests.project import edit, with_values
from tests.tracking.server import Mlflow


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[Mlflow]:
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    started = Mlflow(folder)
    started.start()
    yield started
    started.kill()


@pytest.fixture
def project(ran: Path, server: Mlflow, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All results, and an empty database of its own."""
    folder = shutil.copytree(ran, tmp_path / "project")
    shutil.copy(empty_database, folder / "mlflow.db")
    values = {"tracking.uri": server.uri, "tracking.experiment": "team", "tracking.system_every": ""}
    edit(folder / "params.yaml", lambda text: with_values(text, values))
    monkeypatch.chdir(folder)
    return folder


def test_a_version_its_model_and_its_picture_reach_the_server_once(
    project: Path, server: Mlflow, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promote.run("morph@hills", None)
    assert "team.morph.hills: version 1 is the champion now" in capsys.readouterr().out
    there, here = MlflowClient(server.uri), MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    (version,) = versions(there, "team.morph.hills")
    (own,) = versions(here, "team.morph.hills")
    assert version.tags[STATE] == own.tags[STATE] and version.tags[MODEL_ID] != own.tags[MODEL_ID]
    found = champion(there, "team.morph.hills")
    assert found and found.version == version.version and champion(here, "team.morph.hills") is None

    address = picture_address(version.tags[MODEL_ID])
    assert address in version.description and own.tags[MODEL_ID] not in version.description
    assert there.get_registered_model("team.morph.hills").description == version.description
    with urlopen(f"{server.uri}/{address}", timeout=60) as picture:
        assert picture.read() == (project / "data/morphs/hills/strip.png").read_bytes()
    run = there.get_run(version.run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [version.tags[MODEL_ID]]

    assert not [outcome for outcome in sync(load_params().tracking) if outcome.failed]
    assert promote.run("morph@hills", None) and promote.run("morph@hills", 1)
    assert len(versions(there, "team.morph.hills")) == 1
