"""Every command that writes, on a disk that is full: one line that names the place, what was there is as it was, and
the same again with room succeeds."""

import errno
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.ci import report as ci_report
from pipeline.cli import app
from pipeline.commands import clean, morph
from pipeline.errors import UserError, of_system
from pipeline.outputs import atomic_folder
from tests.hostile.disks import full_disk
from tests.project import contents, edit, paint, with_values

OWN = ("../a.png", "../b.png")
CAPTIONS = ("--caption", "a red hill", "--caption", "a blue hill")
# By name: the command, and the place that its message names. Sizes in bytes, where files may grow that far.
COMMANDS: dict[str, tuple[list[str], str, int]] = {
    "check": (["check"], "data/checked.txt", 0),
    "add": (["add", "new", *OWN, *CAPTIONS], "data/raw/new", 0),
    "add, to params.yaml": (["add", "new", *OWN, *CAPTIONS], "params.yaml", 8000),
    "prepare": (["prepare", "dots"], "data/prepared/dots", 0),
    "train, its reading": (["train", "dots"], tempfile.gettempdir(), 0),
    "train, its checkpoint": (["train", "dots"], ".work/adapters/", 9000),
    "sample": (["sample", "dots"], "reports/samples/dots.png", 0),
    "morph": (["frames", "dots"], "data/morphs/dots", 0),
    "morph, its clip": (["frames", "dots"], "data/morphs/dots", 12_000),
    "evaluate": (["evaluate", "dots"], "reports/metrics/dots.json", 0),
    "evaluate, its plot": (["evaluate", "dots"], "reports/smoothness/dots.png", 6000),
    "styles": (["styles"], "data/styles", 0),
    "edit": (["edit", "hills"], "data/edits/hills", 0),
    "report": (["report"], "reports/metrics.json", 0),
    "report, its plots": (["report"], tempfile.gettempdir(), 6000),
    "report, its page": (["report"], "reports/index.html", 60_000),
    "export": (["export", "dots", "--out", "exported"], "exported/set.safetensors", 0),
    "mix": (["mix", "dots:0.5", "hills/blue:0.5", "--out", "mixed.safetensors"], "mixed.safetensors", 0),
    "fuse": (["fuse", "dots", "--out", "fused"], "fused", 0),
    "fuse, its weights": (["fuse", "dots", "--out", "fused"], "fused", 9000),
    "clip, MP4": (["clip", "dots", "--out", "c.mp4"], "c.mp4", 0),
    "clip, WebP": (["clip", "dots", "--out", "c.webp"], "c.webp", 0),
    "clip, GIF": (["clip", "dots", "--out", "c.gif"], "c.gif", 0),
    "clip, PNG": (["clip", "dots", "--out", "pngs"], "pngs", 0),
    "quick": (["morph", *OWN, "--quick", "--frames", "3", "--steps", "2", "--out", "q.mp4"], "q.mp4", 0),
    "ci-report": (["ci-report", "--base", "HEAD"], "report/report.md", 0),
}
CHANGING = (".work", "mlartifacts", ".git", ".dvc")


@pytest.fixture
def full(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished project, where a run that cannot be tracked goes on, as a Git repository."""
    project = Path(shutil.copytree(ran, tmp_path / "project"))
    edit(project / "params.yaml", lambda text: with_values(text, {"tracking.required": "false"}))
    for number, name in enumerate(OWN):
        paint(project / name, 3 + number)
    (project / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    monkeypatch.chdir(project)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "params.yaml", "dvc.lock"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *arguments], check=True)
    return project


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_and_no_harm(full: Path, name: str) -> None:
    arguments, place, size = COMMANDS[name]
    if arguments[0] == "train":  # else its adapter is in .work already
        edit(full / "params.yaml", lambda text: with_values(text, {"train.seed": 77}))
    before = contents(full, *CHANGING)
    with full_disk(size):
        answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 1 and isinstance(answer.exception, SystemExit), answer.output
    headline, *lines = answer.stderr.splitlines()[-2:]
    assert headline == f"morphline {arguments[0]}: 1 problem(s)", answer.stderr
    assert lines[0].startswith(f"  {place}") and "File too large. Make room there. " in lines[0], lines
    assert "partial" not in lines[0] and "Traceback" not in answer.stderr
    assert contents(full, *CHANGING) == before
    assert not [path for path in full.rglob("*.partial*") if ".git" not in path.parts]
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output


def test_a_database_that_cannot_grow_says_to_make_room(full: Path) -> None:
    edit(full / "params.yaml", lambda text: with_values(text, {"tracking.required": "true"}))
    with full_disk(2000):
        answer = CliRunner().invoke(app, ["prepare", "dots"])
    assert answer.exit_code == 1
    assert "mlflow.db: cannot be used (File too large). Make room there (MLFLOW_TRACKING_URI" in answer.stderr


def test_the_one_shot_morph_names_the_place_whoever_meets_it(
    full: Path, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Itself, or DVC, which is a stand-in here."""
    arguments, before = ["morph", *OWN, *CAPTIONS, "--out", "m.mp4"], contents(full, *CHANGING)
    called: list[list[str]] = []

    def one_line(dvc: Callable[[], int]) -> str:
        monkeypatch.setattr(morph, "_repro", lambda *targets: called.append(list(targets)) or dvc())
        answer = CliRunner().invoke(app, arguments)
        assert answer.exit_code == 1 and isinstance(answer.exception, SystemExit), answer.output
        headline, line = answer.stderr.splitlines()
        assert headline == "morphline morph: 1 problem(s)"
        return line

    def fill_up() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        return 255

    def make() -> int:
        shutil.copytree(ran / "data/morphs/hills", "data/morphs/a-b")
        return 0

    with full_disk():
        assert one_line(make).startswith("  data/raw/a-b: File too large. Make room there.")
    assert contents(full, *CHANGING) == before
    with full_disk(20_000):  # room for two small pictures
        assert one_line(make).startswith(f"  {full}: File too large. Make room there.")
    assert (full / "data/raw/a-b/metadata.jsonl").is_file() and not called
    with full_disk(10**9):
        assert one_line(fill_up).startswith(f"  {full}: File too large. Make room there.")
    assert one_line(lambda: 255).startswith("  dvc repro morph@a-b: it failed (exit code 255).")
    monkeypatch.setattr(morph, "_repro", lambda *targets: make())
    assert CliRunner().invoke(app, arguments).exit_code == 0 and (full / "m.mp4").stat().st_size


def test_what_is_there_is_replaced_whole_or_stays(full: Path) -> None:
    """Files that a person has named, and replaces by --force."""
    for arguments in (["clip", "dots", "--out", "c.mp4"], ["fuse", "dots", "--out", "fused"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
        before = contents(full, *CHANGING)
        with full_disk(500):
            assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 1
        assert contents(full, *CHANGING) == before


def test_a_copy_of_a_folder_names_the_output_and_not_each_file(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for number in range(9):
        (tmp_path / f"frames/{number}.png").write_bytes(bytes(5000))
    disk, refusal = full_disk(1000), pytest.raises(OSError, match="File too large")
    with disk, refusal as refused, atomic_folder(tmp_path / "out") as partial:
        shutil.copytree(tmp_path / "frames", partial / "frames")
    said = str(UserError(of_system(refused.value)))
    assert said.startswith(f"{tmp_path / 'out'}: File too large. Make room there. ") and len(said) < 300


def test_clean_makes_room_where_there_is_none_for_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("idle", "busy"):
        (tmp_path / ".work/adapters" / name).mkdir(parents=True)
        (tmp_path / ".work/adapters" / name / "checkpoint.safetensors").write_bytes(bytes(100))
    (tmp_path / ".work/adapters/busy.lock").touch()
    opened = os.open

    def refuse(path: object, *arguments: int, **keywords: object) -> int:
        if str(path).endswith(".lock"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return opened(path, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="No space left"):  # a lock that is there cannot be asked, so it is not broken
        clean.run(0, delete=True)
    assert len(list(tmp_path.rglob("checkpoint.safetensors"))) == 2
    (tmp_path / ".work/adapters/busy.lock").unlink()
    assert "freed 200 bytes" in clean.run(0, delete=True)
    assert not list((tmp_path / ".work/adapters").iterdir())


def test_a_strip_that_cannot_be_fetched_for_want_of_room_is_not_taken_for_none(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dvc.api

    class Full:
        def __init__(self, rev: str) -> None: ...

        def get_file(self, path: str, target: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(dvc.api, "DVCFileSystem", Full)
    with pytest.raises(OSError, match="No space left") as refused:
        ci_report.write_strips("HEAD", "dots", full / "report")
    assert refused.value.filename == str(full / "report/dots-before.png")
