"""A clone of the project in scratch space, in the state in which the project is, that shares DVC's cache.

What differs from the last commit is copied: changed files, and new ones that Git does not ignore. What DVC has comes
from its cache. Of what Git ignores a clone has the settings of `.dvc/config.local`, `.work` (so that a training goes on
where another worker was killed), and models that params.yaml names.
"""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import Problem, UserError
from pipeline.workers.groups import undisturbed

PREFIX = "morphline-work"
LONGEST_OUTPUT = 2000


@dataclass
class Scratch:
    """folder: all of it. project: the clone's copy of the project. keep: it is left when the block is."""

    folder: Path
    project: Path
    keep: bool = False

    @property
    def database(self) -> Path:
        """Where the runs of the clone are tracked."""
        return self.folder / "mlflow.db"

    def delete(self) -> None:
        """Delete all of it, unless it is to be kept."""
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def scratch_clone(home: Path, place: Path | None, cache: str | None, remote: str | None) -> Iterator[Scratch]:
    """A clone of the project `home` in a new folder, which is deleted when the block is left.

    place: where; None: the system's folder for temporary files. cache: the folder of the cache to share; None: the
    clone has one of its own. remote: the name of the default remote; None: as in the project.

    Raises:
        UserError: the project has no commit, or Git or the disk refuses.
    """
    top = Path(_git(home, "rev-parse", "--show-toplevel"))
    place = (place or Path(tempfile.gettempdir())).resolve()
    place.mkdir(parents=True, exist_ok=True)
    scratch = Scratch(folder := Path(tempfile.mkdtemp(prefix=f"{_prefix(home)}{os.getpid()}-", dir=place)), folder)
    try:
        clone = folder / "clone"
        scratch.project = clone / home.resolve().relative_to(top.resolve())
        _clone(top, clone)
        _copy_changes(top, clone)
        _configure(home, scratch, cache, remote)
        work = home / ".work"
        work.mkdir(exist_ok=True)
        (scratch.project / ".work").symlink_to(work.resolve())
        yield scratch
    finally:
        with undisturbed():
            scratch.delete()


def link_missing(home: Path, project: Path, names: Sequence[str]) -> None:
    """Let the clone see files and folders, by their paths in the project, that it lacks because Git ignores them."""
    for name in names:
        if (home / name).exists() and not (project / name).exists():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            (project / name).symlink_to((home / name).resolve())


def left_behind(home: Path, place: Path | None) -> list[Scratch]:
    """Clones of this project by processes of this machine that were killed."""
    import psutil

    found = []
    for folder in (place or Path(tempfile.gettempdir())).glob(f"{_prefix(home)}*-*"):
        number = folder.name.removeprefix(_prefix(home)).partition("-")[0]
        mine = not folder.is_symlink() and folder.stat().st_uid == os.getuid()  # in /tmp anybody may make one
        if mine and number.isdigit() and not psutil.pid_exists(int(number)):
            found.append(Scratch(folder, folder / "clone"))
    return found


def _prefix(home: Path) -> str:
    """Names of clones begin with this: which project's they are, and on which machine; then comes the process."""
    whose = hashlib.sha256(f"{home.resolve()} {socket.gethostname()}".encode()).hexdigest()[:12]
    return f"{PREFIX}-{whose}-"


def _clone(top: Path, clone: Path) -> None:
    """The checked-out commit and branch. Git's objects stay where they are."""
    commit = _git(top, "rev-parse", "HEAD")
    branch = _git(top, "branch", "--show-current")
    _git(top, "clone", "--quiet", "--shared", "--no-checkout", "--no-tags", str(top), str(clone))
    _git(clone, "checkout", "--quiet", *(["-B", branch] if branch else ["--detach"]), commit)


def _copy_changes(top: Path, clone: Path) -> None:
    status = _git(top, "status", "--porcelain", "--no-renames", "--untracked-files=all", "-z")
    for name in (line[3:] for line in status.split("\0") if line):
        here, there = top / name, clone / name
        if here.is_dir() and not here.is_symlink():
            print(f"morphline work: {name} is a Git repository of its own, which is not copied", file=sys.stderr)
            continue
        there.unlink(missing_ok=True)
        if os.path.lexists(here):
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(here, there, follow_symlinks=False)


def _configure(home: Path, scratch: Scratch, cache: str | None, remote: str | None) -> None:
    """DVC's settings for the clone alone. Places that the project's own give relative to its folder stay the same."""
    from dvc.config import Config, merge

    own = Config(home / ".dvc", validate=False)
    with Config(scratch.project / ".dvc", validate=False).edit("local") as settings:
        merge(settings, {"remote": own.load_one("repo")["remote"]})
        merge(settings, own.load_one("local"))
        settings["core"]["site_cache_dir"] = str(scratch.folder / "site")
        if cache:
            settings["cache"]["dir"] = cache
        else:
            settings["cache"].pop("dir", None)
        if remote:
            settings["core"]["remote"] = remote
    (scratch.project / ".dvc/config.local").chmod(0o600)  # it may hold keys


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, check=True, encoding="utf-8", errors="surrogateescape"
        )
    except FileNotFoundError:
        raise UserError(Problem("git", "it is not installed", "Install Git: workers work in clones.")) from None
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split())[:LONGEST_OUTPUT]
        fix = "Workers work in clones of the last commit: `git init && git add --all && git commit -m Begin` makes one."
        raise UserError(Problem(f"git {arguments[0]} in {folder}", said, fix)) from None
    return done.stdout.rstrip("\n")
