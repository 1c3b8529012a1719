"""Projects of many keys, each test's own."""

from pathlib import Path

import pytest

from tests.workers.project import KEYS, make_many


@pytest.fixture(scope="session")
def empty_database(database: str) -> Path:
    return Path(database.removeprefix("sqlite:///"))


@pytest.fixture
def many(tmp_path: Path, empty_database: Path) -> Path:
    return make_many(tmp_path / "many/project", KEYS, empty_database)


@pytest.fixture
def few(tmp_path: Path, empty_database: Path) -> Path:
    return make_many(tmp_path / "few/project", KEYS[:2], empty_database)
