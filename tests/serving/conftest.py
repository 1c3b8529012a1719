"""Packages of the tiny project: a morph with an adapter for each keyframe, and a set with one for all."""

from contextlib import chdir
from pathlib import Path

import pytest

from pipeline.params import load_params
from pipeline.serving.package import contents_of, write_package


@pytest.fixture(scope="session")
def packages(ran: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By stage the folder of a package. Not to be changed."""
    folders = {}
    with chdir(ran):
        for stage in ("morph@hills", "train@dots"):
            folders[stage] = tmp_path_factory.mktemp("package")
            write_package(contents_of(load_params(), stage), folders[stage])
    return folders


@pytest.fixture
def base(ran: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the packages' base lies."""
    monkeypatch.setenv("MORPHLINE_BASE", str(ran / "bases/tiny"))
    return ran / "bases/tiny"
