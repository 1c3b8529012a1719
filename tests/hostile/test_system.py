"""What the system refuses, in every command: one line that names the place, exit code 1, and all is as it was."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import UserError, of_system
from tests.hostile.disks import full_disk
from tests.project import contents, paint

ERRORS = {
    errno.ENOSPC: "No space left on device. Make room there.",
    errno.EROFS: "Read-only file system. Make it writable,",
    errno.EACCES: "Permission denied. Make it writable,",
}
COMMANDS = {
    "check": [],
    "prepare": ["hills"],
    "add": ["new", "../a.png", "../b.png", "--caption", "a red hill", "--caption", "a blue hill"],
}


@pytest.mark.parametrize("number", ERRORS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_refuses_is_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, command: str, number: int
) -> None:
    for name in ("a.png", "b.png"):
        paint(project.parent / name, 3)
    before = contents(project, ".work")
    made, opened = os.mkdir, os.open

    def refuse_folder(path: object, *arguments: object, **keywords: object) -> None:
        if "data/" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        made(path, *arguments, **keywords)  # type: ignore[arg-type]

    def refuse_rename(source: object, target: object) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr(os, "mkdir", refuse_folder)
    monkeypatch.setattr(os, "replace", refuse_rename)
    answer = CliRunner().invoke(app, [command, *COMMANDS[command]])
    monkeypatch.undo()
    assert os.open is opened and answer.exit_code == 1 and isinstance(answer.exception, SystemExit), answer.output
    headline, line = answer.stderr.splitlines()
    assert headline == f"morphline {command}: 1 problem(s)"
    place = {"check": "data/checked.txt", "prepare": "data/prepared", "add": "data/raw/new"}[command]
    assert place in line and ERRORS[number] in line and ".partial" not in line
    monkeypatch.chdir(project)
    assert contents(project, ".work") == before


def test_memory_and_odd_errors_are_lines_too(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.stages import check

    for error, said in (
        (MemoryError(), "memory: it ran out. Use smaller pictures"),
        (OSError("http://ann:secret@host/x is away"), "the system: http://ann:***@host/x is away. Correct it"),
        (UnicodeEncodeError("ascii", "ü", 0, 1, "no"), "the locale's encoding: it has no 'ü'. Set PYTHONUTF8=1"),
    ):

        def fail(error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(check, "run", fail)
        answer = CliRunner().invoke(app, ["check"])
        assert answer.exit_code == 1 and said in answer.stderr, answer.stderr


def test_every_error_of_the_system_has_a_place_and_a_way_out() -> None:
    for number in errno.errorcode:
        problem = of_system(OSError(number, os.strerror(number), "a/b"))
        assert problem.where == "a/b" and problem.found and problem.fix
    assert "the system: " in str(UserError(of_system(OSError())))


def test_a_machine_without_room_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", None)
    disk, refusal = full_disk(), pytest.raises(FileNotFoundError)
    with disk, refusal as refused:
        tempfile.mkdtemp()
    said = str(UserError(of_system(refused.value)))
    assert said.startswith("temporary files: No usable temporary directory found in [")
    assert said.endswith("Make room in one of these, or name a folder that has room in TMPDIR.")
