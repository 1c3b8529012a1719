"""`morphline morph --quick`: a clip by the base alone, and nothing else."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.params import load_params
from pipeline.pictures.preparing import prepare_picture
from pipeline.pictures.rows import Row
from tests.project import HEIGHT, WIDTH, contents, edit, paint, with_values
from tests.tiny import build_tiny, section


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(("one.png", "two.jpg", "three.png")):
        paint(folder / name, 50 + number, (120, 80 + number))
    return [str(folder / name) for name in ("one.png", "two.jpg", "three.png")]


def test_a_clip_is_made_and_nothing_is_trained_tracked_or_kept(
    project: Path, own: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(project)
    monkeypatch.setitem(sys.modules, "mlflow", None)  # importing it would fail
    arguments = ["morph", *own, "--quick", "--frames", "4", "--steps", "2", "--out", "clip.webp", "--fps", "10"]
    answer = CliRunner().invoke(app, [*arguments, "--hold", "0.3"])
    assert answer.exit_code == 0, answer.output
    assert "without training" in answer.output
    with Image.open("clip.webp") as clip:
        assert clip.n_frames == 7 and clip.size == (WIDTH, HEIGHT)
        shown = []
        for number in range(clip.n_frames):
            clip.seek(number)
            clip.load()
            shown.append(clip.info["duration"])
    assert shown == [400, 100, 100, 400, 100, 100, 400]
    assert contents(project) == {**before, "clip.webp": Path("clip.webp").read_bytes()}


def test_two_pictures_get_more_frames_and_the_same_ones_each_time(project: Path, own: list[str]) -> None:
    for name in ("a", "b"):
        answer = CliRunner().invoke(app, ["morph", *own[:2], "--quick", "--steps", "2", "--out", name])
        assert answer.exit_code == 0, answer.output
    assert len(list(Path("a").iterdir())) == 31
    assert contents(Path("a")) == contents(Path("b"))


def test_mistakes_are_named_before_anything_is_loaded(project: Path, own: list[str]) -> None:
    before = contents(project)
    for arguments, message in (
        ([own[0]], "PICTURES: 1 given"),
        ([own[0], "no.png"], "no.png: there is no such file"),
        ([*own, "--caption", "a", "--caption", "b"], "--caption: 2 captions for 3 pictures"),
        ([*own, "--out", "a.avi"], "--out: found 'a.avi'"),
        ([own[0], str(project / "params.yaml")], "params.yaml: "),
    ):
        answer = CliRunner().invoke(app, ["morph", *arguments, "--quick"])
        assert answer.exit_code == 1 and message in answer.stderr and "Traceback" not in answer.stderr
    assert contents(project) == before


def test_what_the_base_would_not_read_of_a_caption_is_refused(project: Path, own: list[str]) -> None:
    edit(project / "params.yaml", lambda text: with_values(text, {"morph.negative": "'" + "hill " * 90 + "'"}))
    captions = ["--caption", "a", "--caption", "hill " * 80]
    answer = CliRunner().invoke(app, ["morph", *own[:2], *captions, "--quick", "--steps", "2", "--out", "a"])
    assert answer.exit_code == 1 and "Traceback" not in answer.output
    lines = answer.stderr.splitlines()
    assert any("two.jpg: the caption has 82 tokens, the base reads 64" in line for line in lines), lines
    assert any("params.yaml: morph.negative: the caption has 92 tokens" in line for line in lines), lines
    assert not Path("a").exists()


def test_a_base_made_for_inpainting_makes_no_clip(project: Path, own: list[str]) -> None:
    shutil.rmtree(project / "bases/tiny")
    build_tiny(takes=9).save_pretrained(project / "bases/tiny")
    digest = str(section(project / "bases/tiny").revision)
    edit(project / "params.yaml", lambda text: with_values(text, {"base.revision": digest}))
    answer = CliRunner().invoke(app, ["morph", *own[:2], "--quick", "--steps", "2", "--out", "a"])
    assert answer.exit_code == 1 and "base.source: a base made for inpainting" in answer.output
    assert not Path("a").exists()


def test_a_batch_without_room_for_a_frame_is_refused(project: Path, own: list[str]) -> None:
    edit(project / "params.yaml", lambda text: with_values(text, {"machine.batch": 2}))
    arguments = ["morph", *own[:2], "--quick", "--steps", "2", "--out", "a", "--set"]
    answer = CliRunner().invoke(app, [*arguments, "morph.attention=[up]"])
    assert answer.exit_code == 1 and "Traceback" not in answer.output
    assert (
        "params.yaml: machine.batch: 2 is too few for a frame of this morph. Write at least 3, or null."
        in answer.stderr
    )
    answer = CliRunner().invoke(app, [*arguments, "morph.guidance=2"])
    assert answer.exit_code == 0, answer.output


def test_ends_are_corrected_where_params_ask_for_it(project: Path, own: list[str]) -> None:
    arguments = ["morph", *own, "--quick", "--frames", "5", "--steps", "2", "--set", "morph.pacing=linear"]
    for name, reach in (("plain", 0), ("real", 0.4)):
        answer = CliRunner().invoke(app, [*arguments, "--set", f"morph.correct_ends={reach}", "--out", name])
        assert answer.exit_code == 0, answer.output
    plain, real = (sorted(Path(name).iterdir()) for name in ("plain", "real"))
    settings = load_params().prepare
    for frame, name in zip(real[::4], own, strict=True):
        prepared, _ = prepare_picture(Path(name), Row(file_name=Path(name).name, text=""), settings)
        assert np.array_equal(np.asarray(Image.open(frame)), np.asarray(prepared))
    assert plain[0].read_bytes() != real[0].read_bytes()
    assert plain[2].read_bytes() == real[2].read_bytes(), "beyond the reach"
