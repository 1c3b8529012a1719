"""A finished morph as other clips."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.commands import clip
from pipeline.errors import UserError
from pipeline.frames.tensors import read_arrays, read_pictures
from tests.project import contents


@pytest.fixture
def finished(ran: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with all its morphs made, as the working folder. Not to be changed."""
    monkeypatch.chdir(ran)
    return ran


def test_without_options_a_clip_is_the_morphs_own(finished: Path, tmp_path: Path) -> None:
    own = finished / "data/morphs/hills"
    for kind in ("mp4", "webp"):
        assert clip.run("hills", tmp_path / f"a.{kind}").read_bytes() == (own / f"morph.{kind}").read_bytes()
    frames = clip.run("hills", tmp_path / "frames")
    assert {path.name: path.read_bytes() for path in frames.iterdir()} == {
        path.name: path.read_bytes() for path in (own / "frames").iterdir()
    }


def test_frame_rate_hold_and_size_are_as_given(finished: Path, tmp_path: Path) -> None:
    count = len(list((finished / "data/morphs/hills/frames").iterdir()))
    with Image.open(clip.run("hills", tmp_path / "a.gif", fps=20, hold=1, size=48)) as gif:
        assert max(gif.size) == 48 and gif.n_frames == count
        assert gif.info["duration"] == 1050
        gif.seek(1)
        assert gif.info["duration"] == 50
    with av.open(str(clip.run("hills", tmp_path / "a.mp4", fps=5, hold=0, size=48))) as container:
        stream = container.streams.video[0]
        assert (max(stream.width, stream.height), stream.average_rate, stream.frames) == (48, 5, count)


def with_real_ends_in(finished: Path, folder: Path, **settings: object) -> Path:
    """A copy of the morph, made as if with other settings."""
    import shutil

    shutil.copytree(finished, folder)
    path = folder / "data/morphs/hills/morph.json"
    facts = json.loads(path.read_text())
    facts["settings"] |= settings
    path.write_text(json.dumps(facts))
    return folder


def test_real_ends_are_in_every_clip(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(with_real_ends_in(finished, tmp_path / "copy", correct_ends=0.4))
    facts = json.loads(Path("data/morphs/hills/morph.json").read_text())
    shown = read_arrays(sorted(clip.run("hills", tmp_path / "frames").iterdir()))
    made = read_arrays(sorted(Path("data/morphs/hills/frames").iterdir()))
    assert len(shown) == len(made)
    stops = [keyframe["frame"] for keyframe in facts["keyframes"]]
    for keyframe in facts["keyframes"]:
        real = read_arrays([Path("data/prepared/hills", keyframe["file_name"])])[0]
        np.testing.assert_array_equal(shown[keyframe["frame"]], real)
        assert (made[keyframe["frame"]] != real).any()
    middle = (stops[0] + stops[1]) // 2
    np.testing.assert_array_equal(shown[middle], made[middle])  # half way, farther than the fade reaches


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.avi", {}, "ends in .mp4, .webp, .gif, or a folder"),
        ("a.gif", {"fps": 60.0}, "GIFs play at most 50"),
        (".gif", {}, "ends in .mp4, .webp, .gif, or a folder"),
        ("a.mp4", {"fps": 0.0}, "--fps: found 0"),
        ("a.mp4", {"hold": -1.0}, "--hold: found -1"),
        ("a.mp4", {"size": 8}, "--size: found 8"),
        ("there.mp4", {}, "exists already"),
        ("mine", {"force": True}, "other files than PNGs"),
        ("folder.mp4", {"force": True}, "exists already"),
    ],
)
def test_what_cannot_be_written_is_refused(
    finished: Path, tmp_path: Path, name: str, options: dict[str, float], message: str
) -> None:
    (tmp_path / "there.mp4").write_bytes(b"mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    (tmp_path / "folder.mp4").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        clip.run("hills", tmp_path / name, **options)  # type: ignore[arg-type]
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.mp4").read_bytes() == b"mine"


@pytest.mark.parametrize("out", ["data/morphs/hills/frames", "data/morphs/hills/morph.mp4", "reports/a.gif"])
def test_the_pipelines_own_files_are_not_replaced(finished: Path, out: str) -> None:
    before = contents(finished)
    with pytest.raises(UserError, match="where the pipeline's own files are"):
        clip.run("hills", Path(out), force=True, size=48)
    assert contents(finished) == before


def test_a_missing_or_unknown_morph_is_reported(project: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dvc repro morph@hills"):
        clip.run("hills", tmp_path / "a.mp4")
    with pytest.raises(UserError, match="morphs"):
        clip.run("nothing", tmp_path / "a.mp4")


def test_force_replaces(finished: Path, tmp_path: Path) -> None:
    first = clip.run("hills", tmp_path / "a.webp", fps=3)
    before = first.read_bytes()
    assert clip.run("hills", tmp_path / "a.webp", fps=9, force=True).read_bytes() != before
    folder = clip.run("hills", tmp_path / "frames")
    clip.run("hills", folder, size=32, force=True)
    assert max(read_pictures(folder.iterdir()).shape) == 32
