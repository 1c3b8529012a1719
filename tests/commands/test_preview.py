"""`morphline preview`: coarse frames of a morph by the base alone, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands import morph
from pipeline.frames.first_looks import FIRST_LOOKS
from tests.project import HEIGHT, WIDTH, contents, edit, paint, with_entries


def preview(key: str, code: int = 0) -> str:
    answer = CliRunner().invoke(app, ["preview", key])
    assert answer.exit_code == code, answer.output
    return answer.output


def looks(key: str) -> list[Path]:
    return sorted((FIRST_LOOKS / key).glob("*.png"))


def test_frames_come_before_anything_is_prepared_or_trained_and_leave_no_other_trace(project: Path) -> None:
    before = contents(project)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mlflow", None)  # importing it would fail
        assert ".work/previews/hills" in preview("hills")
    found = looks("hills")
    assert [path.stem.partition("-")[0] for path in found] == ["000"] * 5 + ["001"] * 4
    first = [path.read_bytes() for path in found]
    assert {name: text for name, text in contents(project).items() if not name.startswith(".work/previews/")} == before
    with Image.open(found[0]) as picture:
        assert picture.size == (WIDTH, HEIGHT)
    preview("hills")
    assert [path.read_bytes() for path in looks("hills")] == first, "the same morph looks the same"


@pytest.mark.parametrize(("loop", "frames"), [(False, 13), (True, 8)])
def test_many_segments_get_fewer_frames_each(project: Path, loop: bool, frames: int) -> None:
    """Three segments of five frames, or with the one that closes the loop four of three."""
    entry = f"  d: {{set: dots, style: none, keyframes: [d0.png, d1.png, d2.png, d3.png], morph: {{loop: {loop}}}}}\n"
    edit(project / "params.yaml", lambda text: with_entries(text, "morphs", entry.lower()))
    preview("d")
    assert len(looks("d")) == frames


def test_what_is_wrong_is_said_without_a_traceback(project: Path) -> None:
    assert "no-such" in preview("no-such", code=1)
    raw = project / "data/raw/hills"
    (raw / "blue.png").write_bytes(b"no picture")
    assert "blue.png" in preview("hills", code=1)
    (raw / "metadata.jsonl").write_text('{"file_name": "blue.png", "text": "a"}\n', encoding="utf-8")
    assert "morphs.hills.keyframes: no row for 'red hill.png'" in preview("hills", code=1)


@pytest.mark.parametrize("trained", [False, True])
def test_a_new_morph_has_one_first_where_something_is_to_be_trained(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: bool
) -> None:
    pictures = [tmp_path / name for name in ("one.png", "two.png")]
    for number, path in enumerate(pictures):
        paint(path, number)
    called = list[list[str]]()
    monkeypatch.setattr(subprocess, "run", lambda command: called.append(command[2:]))
    monkeypatch.setattr(morph, "reproduce", lambda target: called.append(["repro", target]) or 1)
    if trained:
        (project / "models/adapters/new").mkdir(parents=True)
    with pytest.raises(Exception, match="it failed"):
        morph.run(pictures, [], tmp_path / "clip.mp4", key="new", preview=True)
    repro = ["repro", "morph@new"]
    assert called == ([repro] if trained else [["pipeline", "preview", "new"], repro])
