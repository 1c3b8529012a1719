"""Commands in odd places and worlds: names of 300 letters, other encodings, full and read-only disks, no Git."""

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.ci import report as ci_report
from pipeline.cli import app
from pipeline.commands import add
from pipeline.errors import UserError, of_system
from pipeline.outputs import atomic_file, atomic_folder, reading
from pipeline.training.checkpoints import TrainState, write_state
from tests.hostile.disks import full_disk
from tests.hostile.generators import changed_value, hostile, json_values
from tests.project import ROOT, contents, edit, paint, with_values


def refused(*arguments: str) -> str:
    answer = CliRunner().invoke(app, list(arguments))
    assert answer.exit_code == 1, answer.output
    assert "Traceback" not in answer.stderr and isinstance(answer.exception, SystemExit)
    return answer.stderr


@pytest.fixture
def pictures(project: Path) -> list[str]:
    for name in ("a.png", "b.png"):
        paint(project.parent / name, 3)
    return [str(project.parent / name) for name in ("a.png", "b.png")]


CAPTIONS = ("--caption", "a red hill", "--caption", "a blue hill")


def test_names_of_300_letters_are_refused(project: Path, pictures: list[str]) -> None:
    before = contents(project)
    assert "100 at most" in refused("add", "k" * 300, *pictures, *CAPTIONS)
    assert "there is no such file" in refused("add", "new", "x" * 300, pictures[1], *CAPTIONS)
    assert "there is no 'kkk" in refused("train", "k" * 300)
    assert contents(project) == before


@pytest.mark.parametrize("out", ["params.yaml/x.mp4", "o" * 300 + ".mp4", "/dev/null/x.mp4", "/proc/x.mp4", "a.mp4/"])
def test_clips_into_odd_places_are_refused(ran: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.chdir(ran)
    before = contents(ran, ".work", "mlartifacts")
    said = refused("clip", "dots", "--out", out) if not out.endswith("/") else refused("clip", "dots", "--out", "data")
    assert "1 problem(s)" in said and contents(ran, ".work", "mlartifacts") == before


@pytest.mark.parametrize("environment", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_captions_that_are_no_text_are_refused_in_any_locale(
    project: Path, pictures: list[str], environment: dict[str, str]
) -> None:
    before = contents(project)
    command = [sys.executable, "-m", "pipeline", "add", "new", *pictures]
    broken = [os.fsencode(part) for part in command] + [b"--caption", b"a \xff hill", b"--caption", b"b"]
    done = subprocess.run(broken, env={**os.environ, **environment, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 1 and b"Traceback" not in done.stderr and b"is not UTF-8" in done.stderr, done.stderr
    assert contents(project) == before


def test_a_terminal_that_lacks_a_letter_is_written_to_all_the_same(project: Path) -> None:
    (project / "params.yaml").unlink()
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    script = "from pipeline import cli; cli.app.command('say')(cli.command(lambda: print('großer See')))"
    code = f"{script}\nimport sys; sys.argv = ['morphline', 'say']; cli.app()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "gro\\xdfer See\n", done.stderr


def test_pipes_are_named_before_dvc_waits_for_them(project: Path, pictures: list[str]) -> None:
    os.mkfifo("data/raw/hills/extra.png")
    os.mkfifo(project.parent / "pipe.png")
    said: list[str] = []

    def ask() -> None:
        said.append(refused("add", "new", pictures[0], str(project.parent / "pipe.png"), *CAPTIONS))
        said.append(refused("morph", *pictures, *CAPTIONS, "--out", "x.mp4"))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(60)
    assert len(said) == 2, "it waits"
    assert "pipe.png: a folder, a pipe or a device" in said[0]
    assert all("data/raw/hills/extra.png: a pipe, a socket or a device" in text for text in said)


def test_git_may_be_missing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "git: it is not installed" in refused("ci-report", "--base", "HEAD")


@hostile(150)
@given(value=json_values | changed_value({"schema": "2.0", "stages": {"a": {"cmd": "x", "outs": [{"path": "b"}]}}}))
def test_any_lock_file_is_stages_or_refused(value: object) -> None:
    try:
        stages = ci_report._stages(json.dumps(value), "dvc.lock")
    except UserError as error:
        assert error.problems[0].where.startswith("dvc.lock")
        return
    assert all(isinstance(stage, dict) for stage in stages.values())


def test_a_list_for_a_lock_file_is_refused(project: Path) -> None:
    for command in (
        ["init", "-q"],
        ["add", "params.yaml"],
        ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qma"],
    ):
        subprocess.run(["git", *command], check=True)
    Path("dvc.lock").write_text("[]")
    assert "dvc.lock: no mapping at the top" in refused("ci-report", "--base", "HEAD")
    Path("dvc.lock").write_text("stages: [a]")
    assert "dvc.lock: `stages` is no mapping" in refused("ci-report", "--base", "HEAD")
    Path("dvc.lock").unlink()
    Path("dvc.lock").symlink_to("/proc/self/environ")
    assert "dvc.lock: it is a link" in refused("ci-report", "--base", "HEAD")


def said_by_a_full_disk(work: Callable[[], object]) -> UserError:
    try:
        with full_disk(20_000):
            work()
    except OSError as error:
        return UserError(of_system(error))
    raise AssertionError("the disk was not full")


def test_a_full_disk_is_one_line_that_names_the_place(tmp_path: Path) -> None:
    import torch

    state = TrainState(1, {"a": torch.zeros(100_000)})
    write_state(tmp_path / "checkpoint.safetensors", TrainState(0, {"a": torch.zeros(2)}))
    before = contents(tmp_path)

    def folder() -> None:
        with atomic_folder(tmp_path / "out") as partial:
            (partial / "a.bin").write_bytes(bytes(50_000))

    def file() -> None:
        with atomic_file(tmp_path / "b.txt") as partial:
            partial.write_text("x" * 50_000)

    for work, name in (
        (folder, "out"),
        (file, "b.txt"),
        (lambda: write_state(tmp_path / "checkpoint.safetensors", state), "checkpoint.safetensors"),
    ):
        said = str(said_by_a_full_disk(work))
        assert said.startswith(f"{tmp_path / name}: File too large. Make room there. "), said
        assert "what was finished is still there" in said and "partial" not in said
        assert contents(tmp_path) == before and set(os.listdir(tmp_path)) == {"checkpoint.safetensors"}


def test_stages_on_a_full_disk_leave_what_was_there(project: Path) -> None:
    assert CliRunner().invoke(app, ["prepare", "dots"]).exit_code == 0
    before = contents(project, ".work")
    with full_disk(2000):
        assert "cannot be used (File too large)" in refused("prepare", "dots"), "the database cannot grow either"
    edit(Path("params.yaml"), lambda text: with_values(text, {"tracking.required": "false"}))
    for stage, place in (("prepare", "data/prepared/dots"), ("train", ".work/")):
        with full_disk(2000):
            said = refused(stage, "dots")
        assert place in said and "File too large. Make room there." in said
    assert contents(project, ".work", "params.yaml") == {k: v for k, v in before.items() if k != "params.yaml"}


def test_what_a_killed_process_left_goes_with_the_next_run(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from pipeline.outputs import atomic_file, atomic_folder, reading
with atomic_folder(Path({str(tmp_path / "out")!r})) as folder, atomic_file(Path({str(tmp_path / "a.txt")!r})) as file:
    (folder / "half").touch()
    file.touch()
    os.kill(os.getpid(), signal.SIGTERM)
"""
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert len(os.listdir(tmp_path)) == 2
    with atomic_folder(tmp_path / "out"), atomic_folder(tmp_path / "other"):
        left = os.listdir(tmp_path)
    assert len([name for name in left if "partial" in name and name.startswith(".out")]) == 1, "its own alone"
    with atomic_file(tmp_path / "a.txt") as file:
        file.touch()
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "other", "out"]


def test_an_output_that_a_killed_process_had_moved_away_comes_back(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    script = f"""
import os, signal
from pathlib import Path
from pipeline import outputs
rename = os.rename
os.rename = lambda old, new: (rename(old, new), os.kill(os.getpid(), signal.SIGKILL))
with outputs.atomic_folder(Path({str(tmp_path / "out")!r})):
    pass
"""
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert not (tmp_path / "out").exists() and len(os.listdir(tmp_path)) == 2
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out"):
        raise RuntimeError
    assert list(contents(tmp_path)) == ["out/mine"] and os.listdir(tmp_path) == ["out"]


def test_a_full_disk_is_no_damage_of_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), reading(tmp_path):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise ValueError("the cache could not be written") from error


@hostile(50)
@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=80))
def test_files_of_any_name_are_written(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("names")
    if name in (".", "..") or len(os.fsencode(name)) > 255:
        return
    with atomic_file(folder / name) as partial:
        partial.write_text("a")
    assert os.listdir(folder) == [name]


def test_a_problem_comes_whole_through_a_pipe_from_another_process() -> None:
    import pickle

    error = UserError(add._missing(Path("/dev/null")), add._missing(Path("nowhere")))
    assert pickle.loads(pickle.dumps(error)).problems == error.problems
