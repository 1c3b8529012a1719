"""Projects of many keys, each test's own."""

import shutil
from pathlib import Path

import pytest

from tests.workers.project import KEYS, make_many


@pytest.fixture
def many(tmp_path: Path, empty_database: Path) -> Path:
    return make_many(tmp_path / "many/project", KEYS, empty_database)


@pytest.fixture(scope="session")
def two_keys(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    return make_many(tmp_path_factory.mktemp("two") / "project", KEYS[:2], empty_database)


@pytest.fixture
def few(tmp_path: Path, two_keys: Path) -> Path:
    return Path(shutil.copytree(two_keys, tmp_path / "few/project", symlinks=True))
