"""What a clone has of its project, and what becomes of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.config import Config

from pipeline.errors import UserError
from pipeline.workers.scratch import Scratch, left_behind, link_missing, scratch_clone
from tests.workers.project import git


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A DVC project in a folder of a repository, on a branch, with edits of every kind."""
    top = tmp_path / "top"
    home = top / "morphs"
    (home / ".dvc").mkdir(parents=True)
    (home / ".dvc/config").write_text("['remote \"team\"']\n    url = ../../../store\n")
    (home / ".dvc/.gitignore").write_text("/config.local\n/cache\n/tmp\n")
    (home / ".gitignore").write_text("/base\n/.work/\n")
    for name in ("edited.txt", "deleted.txt", "same.txt", "Größe \u5c71.txt"):
        (home / name).write_text("committed")
    git_here(top, "init", "-q", "-b", "main")
    git_here(top, "add", ".")
    git_here(top, "commit", "-qm", "Begin")
    git_here(top, "checkout", "-qb", "trial")
    (home / "edited.txt").write_text("edited")
    (home / "Größe \u5c71.txt").write_text("edited")
    (home / "deleted.txt").unlink()
    (home / "new/deep").mkdir(parents=True)
    (home / "new/deep/file.txt").write_text("new")
    (home / "staged.txt").write_text("staged")
    git_here(top, "add", "morphs/staged.txt")
    (home / "link").symlink_to("edited.txt")
    (home / "base").mkdir()
    (home / "base/model.txt").write_text("large")
    (home / ".dvc/config.local").write_text("['remote \"team\"']\n    verify = true\n")
    return home


def git_here(folder: Path, *arguments: str) -> str:
    return git(folder, *arguments).strip()


def test_a_clone_is_in_the_state_of_the_project(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = git_here(home, "status", "--porcelain")
    monkeypatch.chdir(tmp_path)
    with scratch_clone(home, Path("scratch"), str(tmp_path / "cache"), None) as scratch:
        project = scratch.project
        assert project.name == "morphs" and project.is_relative_to(tmp_path / "scratch")
        texts = {path.name: path.read_text() for path in project.glob("*.txt")}
        edited = {"edited.txt": "edited", "Größe \u5c71.txt": "edited", "same.txt": "committed", "staged.txt": "staged"}
        assert texts == edited
        assert (project / "new/deep/file.txt").read_text() == "new"
        assert os.readlink(project / "link") == "edited.txt"
        assert git_here(project, "branch", "--show-current") == "trial"
        assert git_here(project, "rev-parse", "HEAD") == git_here(home, "rev-parse", "HEAD")
        assert not (project / "base").exists()
        link_missing(home, project, ["base", "same.txt", "of/the/hub"])
        assert (project / "base/model.txt").read_text() == "large" and not (project / "same.txt").is_symlink()
        assert (project / ".work").resolve() == home / ".work"
        (project / "edited.txt").write_text("by the worker")
    assert not list((tmp_path / "scratch").iterdir())
    assert (home / "edited.txt").read_text() == "edited" and (home / "base/model.txt").exists()
    assert git_here(home, "status", "--porcelain") == before


def test_settings_that_are_relative_to_the_project_stay_the_same(home: Path, tmp_path: Path) -> None:
    with scratch_clone(home, tmp_path / "scratch", str(tmp_path / "cache"), "team") as scratch:
        settings = Config(scratch.project / ".dvc")
        assert Path(settings["remote"]["team"]["url"]).resolve() == (tmp_path / "store").resolve()
        assert settings["remote"]["team"]["verify"] is True
        assert settings["core"]["remote"] == "team" and settings["cache"]["dir"] == str(tmp_path / "cache")
        assert (scratch.project / ".dvc/config.local").stat().st_mode & 0o77 == 0
        assert scratch.folder.stat().st_mode & 0o77 == 0
    (home / ".dvc/config.local").write_text("[cache]\n    dir = elsewhere\n")
    with scratch_clone(home, tmp_path / "scratch", None, "team") as scratch:
        assert "dir" not in Config(scratch.project / ".dvc")["cache"], "a cache of its own"


def test_a_checkout_of_no_branch_and_a_repository_within(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    git_here(home, "checkout", "-q", "--detach")
    (home / "other").mkdir()
    git_here(home / "other", "init", "-q")
    with scratch_clone(home, tmp_path / "scratch", None, None) as scratch:
        assert git_here(scratch.project, "branch", "--show-current") == ""
        assert not (scratch.project / "other").exists()
    assert "morphs/other/ is a Git repository of its own, which is not copied" in capsys.readouterr().err


def test_the_clone_of_a_process_that_is_gone_is_found_again(home: Path, tmp_path: Path) -> None:
    place = tmp_path / "scratch"
    kill = (
        "import os, pathlib, signal, sys\n"
        "from pipeline.workers.scratch import scratch_clone\n"
        "with scratch_clone(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), None, None):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", kill, str(home), str(place)], check=False)
    with scratch_clone(home, place, None, None):
        (left,) = left_behind(home, place)
        assert not left_behind(home.parent, place), "another project's"
        left.keep = True
        left.delete()
        assert left.folder.exists()
        left.keep = False
        left.delete()
        assert left_behind(home, place) == []
    (place / f"{left.folder.name}x").symlink_to(home)
    assert left_behind(home, place) == [], "not what somebody laid there"


def test_a_failure_leaves_nothing(home: Path, tmp_path: Path) -> None:
    message = "git rev-parse in .*not a git repository.*git init && git add --all"
    with pytest.raises(UserError, match=message), scratch_clone(tmp_path, tmp_path / "scratch", None, None):
        pass
    with pytest.raises(ValueError), scratch_clone(home, tmp_path / "scratch", None, None):
        raise ValueError
    assert not list((tmp_path / "scratch").glob("*")) and Scratch(home, home).database == home / "mlflow.db"
