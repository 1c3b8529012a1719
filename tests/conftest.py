"""Fixtures for all rooms: tiny bases on disk, opened fresh for each test, and tiny projects."""

import os
import shutil

# Small tensors: more threads only wait for each other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

from tests.project import make_project

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prediction type to the folder of a tiny base."""
    from tests.tiny import build_tiny

    folders = {}
    for prediction_type in ("epsilon", "v_prediction"):
        folders[prediction_type] = tmp_path_factory.mktemp("bases") / prediction_type
        build_tiny(prediction_type).save_pretrained(folders[prediction_type])
    return folders


@pytest.fixture(params=["epsilon", "v_prediction"])
def tiny(request: pytest.FixtureRequest, tiny_folders: dict[str, Path]):
    """A fresh tiny base of either prediction type."""
    from tests.tiny import open_tiny

    return open_tiny(tiny_folders[request.param])


@pytest.fixture
def fresh_tiny(tiny_folders: dict[str, Path]) -> Callable:
    """Opens as many fresh copies of the epsilon base as a test needs."""
    from tests.tiny import open_tiny

    return lambda: open_tiny(tiny_folders["epsilon"])


@pytest.fixture(scope="session", autouse=True)
def plain_environment() -> None:
    """The tests' runs belong in databases of their own, whatever the shell they are started from is set to."""
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
        del os.environ[name]


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a migrated MLflow database, which takes 6 s to make."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"
    MlflowClient(uri).search_experiments()
    path = Path(uri.removeprefix("sqlite:///"))
    shutil.copy(path, path.with_name("empty.db"))
    return uri


@pytest.fixture(scope="session")
def empty_database(database: str) -> Path:
    """Such a database as no run has been in. To be copied, not to be changed."""
    return Path(database.removeprefix("sqlite:///")).with_name("empty.db")


def run_all(project: Path) -> None:
    """Every stage, as DVC would order them."""
    from pipeline.stages import check, edit, evaluate, morph, prepare, report, sample, styles, train

    with chdir(project):
        check.run()
        for stage in (prepare, train, sample):
            for key in ("hills", "dots"):
                stage.run(key)
        for stage in (morph, evaluate):
            for key in ("hills", "dots"):
                stage.run(key)
        styles.run()
        edit.run("hills")
        report.run()


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_folders: dict[str, Path], database: str) -> Path:
    """A project with all outputs made. Not to be changed."""
    project = make_project(tmp_path_factory.mktemp("ran") / "project", tiny_folders["epsilon"], database)
    run_all(project)
    return project


@pytest.fixture
def project(tmp_path: Path, tiny_folders: dict[str, Path], database: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh project as the working folder, with nothing made yet."""
    folder = make_project(tmp_path / "project", tiny_folders["epsilon"], database)
    monkeypatch.chdir(folder)
    return folder
