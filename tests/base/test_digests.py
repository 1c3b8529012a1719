import hashlib
import os
from pathlib import Path

import pytest

from pipeline.base import digests
from pipeline.base.digests import MEMORY, file_sha256

LARGE = 1_500_000


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A large file that was written a while ago, beside a project as the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".work").mkdir()
    return written(tmp_path / "weights", b"a")


def written(path: Path, letter: bytes, ago: float = 60.0) -> Path:
    path.write_bytes(letter * LARGE)
    then = path.stat().st_mtime - ago
    os.utime(path, (then, then))
    return path


def digest(letter: bytes) -> str:
    return hashlib.sha256(letter * LARGE).hexdigest()


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is hashed from here on, in a process that remembers nothing itself."""
    digests._sha256.cache_clear()
    plain, read = hashlib.file_digest, []

    def counted(file: object, kind: str) -> object:
        read.append(file)
        return plain(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return read


def test_a_file_is_read_once_and_remembered_by_other_processes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = count_reads(monkeypatch)
    assert file_sha256(file) == file_sha256(file) == digest(b"a") and len(read) == 1
    read = count_reads(monkeypatch)
    assert file_sha256(file) == digest(b"a") and not read


def test_a_change_is_noticed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert file_sha256(file) == digest(b"a")
    for letter, ago in ((b"b", 50.0), (b"c", 70.0)):
        written(file, letter, ago)
        digests._sha256.cache_clear()
        assert file_sha256(file) == digest(letter)


def test_a_file_that_was_changed_just_now_is_not_remembered(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(file, b"b", ago=0.0)
    assert file_sha256(file) == digest(b"b") and not MEMORY.exists()


@pytest.mark.parametrize("content", ["", "[1]", "{", "\x00", '{"weights": 3}'])
def test_a_damaged_memory_is_made_again(file: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MEMORY.write_text(content)
    count_reads(monkeypatch)
    assert file_sha256(file) == digest(b"a")
    read = count_reads(monkeypatch)
    assert file_sha256(file) == digest(b"a") and not read


def test_without_a_project_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert file_sha256(written(tmp_path / "weights", b"a")) == digest(b"a")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
