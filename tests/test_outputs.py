"""Outputs appear whole or not at all."""

import os
from pathlib import Path

import pytest

from pipeline.outputs import atomic_file, atomic_folder


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_folder_appears_only_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "missing parent" / "set"
    with atomic_folder(out) as partial:
        (partial / "a.txt").write_text("new")
        assert not out.exists()
        assert partial.parent == out.parent  # else renaming could cross file systems
    assert _tree(tmp_path) == {"missing parent/set/a.txt": "new"}
    assert oct(out.stat().st_mode & 0o777) == oct(tmp_path.joinpath("missing parent").stat().st_mode & 0o777)


def test_folder_replaces_all_of_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "set"
    (out / "inner").mkdir(parents=True)
    (out / "inner" / "old.txt").write_text("old")
    (out / "inner" / "old.txt").chmod(0o444)  # as DVC leaves its files
    with atomic_folder(out) as partial:
        (partial / "a.txt").write_text("new")
    assert _tree(tmp_path) == {"set/a.txt": "new"}
    assert _names(tmp_path) == ["set"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "set"
    out.mkdir()
    (out / "old.txt").write_text("old")
    with pytest.raises(error), atomic_folder(out) as partial:
        (partial / "a.txt").write_text("half")
        raise error
    assert _tree(tmp_path) == {"set/old.txt": "old"}
    assert _names(tmp_path) == ["set"]


def test_a_failed_rename_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "set"
    out.mkdir()
    (out / "old.txt").write_text("old")
    rename = os.rename

    def fail_for_the_new_one(source: Path, target: Path) -> None:
        if str(source).endswith(".partial"):
            raise OSError("disk full")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="disk full"), atomic_folder(out) as partial:
        (partial / "a.txt").write_text("new")
    assert _tree(tmp_path) == {"set/old.txt": "old"}
    assert _names(tmp_path) == ["set"]


def test_folder_takes_the_place_of_a_file_and_of_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with atomic_folder(tmp_path / name) as partial:
            (partial / "a.txt").write_text("new")
    assert _tree(tmp_path) == {"file/a.txt": "new", "link/a.txt": "new"}


def test_file_appears_only_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "missing parent" / "clip.mp4"
    with atomic_file(out) as partial:
        assert partial.suffix == ".mp4"  # writers go by it
        partial.write_text("new")
        assert not out.exists()
    assert _tree(tmp_path) == {"missing parent/clip.mp4": "new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "clip.mp4"
    out.write_text("old")
    with pytest.raises(error), atomic_file(out) as partial:
        partial.write_text("half")
        raise error
    with pytest.raises(error), atomic_file(out):
        raise error  # before anything was written
    assert _names(tmp_path) == ["clip.mp4"]
    assert out.read_text() == "old"


def test_a_block_that_writes_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "clip.mp4"):
        pass
    assert _names(tmp_path) == []
