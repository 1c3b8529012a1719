"""A tiny project with all stages run once, in this process, for many tests to look at."""

from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

from tests.project import make_project

New = Callable[..., Path]


def run_all(project: Path) -> None:
    """Every stage, as DVC would order them."""
    from pipeline.stages import check, evaluate, morph, prepare, report, sample, train

    with chdir(project):
        check.run()
        for stage in (prepare, train, sample):
            for key in ("hills", "dots"):
                stage.run(key)
        for stage in (morph, evaluate):
            for key in ("hills", "dots"):
                stage.run(key)
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
