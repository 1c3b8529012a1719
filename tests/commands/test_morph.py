import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.commands import add, morph, quick
from pipeline.errors import UserError
from pipeline.params import load_params
from tests.project import contents, edit, paint, with_values


@pytest.mark.parametrize(
    ("name", "key"), [("Großer See (2)", "grosser-see-2"), ("a_b.c", "a-b-c"), ("山", ""), ("--x--", "x"), ("É", "e")]
)
def test_names_become_valid_keys(name: str, key: str) -> None:
    assert morph.slugify(name) == key


@pytest.fixture
def own(tmp_path: Path) -> list[Path]:
    """Two pictures of a user's, outside the project."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    pictures = [folder / "One Hill.png", folder / "two.png"]
    for number, path in enumerate(pictures):
        paint(path, 50 + number)
    return pictures


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, ran: Path) -> list[list[str]]:
    """What would be run; its morph is another one."""
    called: list[list[str]] = []

    def call(target: str) -> int:
        called.append(["-m", "dvc", "repro", target])
        out = Path("data/morphs") / target.removeprefix("morph@")
        shutil.copytree(ran / "data/morphs/hills", out, dirs_exist_ok=True)
        return 0

    monkeypatch.setattr(morph, "reproduce", call)
    return called


def test_dvc_finds_morphline_where_no_environment_is_activated(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    class Started:
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            assert command[1:] == ["-m", "dvc", "repro", "morph@hills"]
            started.append(env["PATH"])

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Started)
    for path in ("/usr/bin:/bin", None):
        monkeypatch.delenv("PATH") if path is None else monkeypatch.setenv("PATH", path)
        assert morph.reproduce("morph@hills") == 0
    own = str(Path(sys.executable).parent)
    assert started == [f"{own}{os.pathsep}/usr/bin:/bin", own]


@pytest.mark.parametrize("given", ["the option", "morph.fps"])
def test_a_gif_that_is_too_fast_is_refused_before_anything_is_made(
    project: Path, own: list[Path], runs: list[list[str]], given: str
) -> None:
    if given == "morph.fps":
        edit(project / "params.yaml", lambda text: with_values(text, {"morph.fps": 60.0}))
    before = contents(project)
    fps = 60.0 if given == "the option" else None
    with pytest.raises(UserError, match="GIFs play at most 50"):
        morph.run(own, ["a red hill", "a blue hill"], Path("hill.gif"), fps=fps)
    with pytest.raises(UserError, match="GIFs play at most 50"):
        quick.run(own, ["a red hill", "a blue hill"], Path("hill.gif"), fps=fps)
    assert contents(project) == before and runs == []


def test_a_rate_that_is_none_is_told_at_its_option(project: Path, own: list[Path], runs: list[list[str]]) -> None:
    with pytest.raises(UserError, match=r"--set morph\.fps: found 'fast'"):
        morph.run(own, ["a", "b"], Path("hill.gif"), extras=add.Extras(settings={"morph": {"fps": "fast"}}))
    assert runs == []


def test_two_pictures_have_as_many_frames_as_the_settings_say(project: Path) -> None:
    params, two = load_params(), [Path("a"), Path("b")]
    assert morph.morph_settings(params, two, None, None, {"frames": 5}) == {"frames": 5}
    assert morph.morph_settings(params, two, None, None) == {"frames": 31}
    assert morph.morph_settings(params, [*two, Path("c")], None, None) == {}
    assert morph.morph_settings(params, two, 7, 3) == {"frames": 7, "steps": 3, "inversion_steps": 3}


@pytest.mark.parametrize("make", [quick.run, morph.run])
def test_frames_are_not_asked_for_where_pacing_says_where_they_lie(
    project: Path, own: list[Path], runs: list[list[str]], make: Callable[..., Path]
) -> None:
    extras = add.Extras(settings={"morph": {"pacing": [0.0, 0.5, 1.0]}})
    with pytest.raises(UserError, match=r"--frames: found 60. Leave it out: morph\.pacing says .*, 3 from a picture"):
        make(own, ["a", "b"], Path("hill.mp4"), extras=extras, frames=60)
    assert runs == [] and not Path("hill.mp4").exists()


def test_frames_are_said_once(project: Path, own: list[Path], runs: list[list[str]]) -> None:
    extras = add.Extras(settings={"morph": {"frames": 5}})
    with pytest.raises(UserError, match=r"--frames: it is also given as --set morph\.frames"):
        morph.run(own, ["a", "b"], Path("hill.mp4"), extras=extras, frames=3)
    assert runs == []


def test_pictures_become_a_set_and_a_morph_and_the_clip_is_written(
    project: Path, own: list[Path], runs: list[list[str]], ran: Path
) -> None:
    captions = ["a red hill", "a blue hill"]
    made = morph.run(own, captions, Path("out/hill.mp4"))
    assert made.read_bytes() == (ran / "data/morphs/hills/morph.mp4").read_bytes()
    assert runs == [["-m", "dvc", "repro", "morph@one-hill-two"]]
    params = load_params(project / "params.yaml")
    assert params.morphs["one-hill-two"].keyframes == ("One Hill.png", "two.png")
    gif = morph.run(own, captions, Path("out/hill.gif"))
    with Image.open(gif) as image, Image.open(ran / "data/morphs/hills/morph.webp") as webp:
        assert image.n_frames == webp.n_frames and image.size == webp.size and image.info["loop"] == 0
    assert runs[1] == runs[0], "the same pictures and captions were added twice"
    morph.run(own, ["a red hill", "a blue lake"], Path("out/other.webp"))
    assert runs[2][-1] == "morph@one-hill-two-2"


def test_nothing_is_made_or_replaced_for_a_mistake(project: Path, own: list[Path], runs: list[list[str]]) -> None:
    before = (project / "params.yaml").read_bytes()
    (project / "there.mp4").write_bytes(b"mine")
    for out, captions, message in (
        ("clip.avi", ["a", "b"], "ends in .mp4, .webp, .gif, or a folder"),
        ("there.mp4", ["a", "b"], "exists already"),
        ("clip.mp4", ["a", "b", "c"], "3 captions for 2 pictures"),
    ):
        with pytest.raises(UserError, match=message):
            morph.run(own, captions, Path(out))
    assert not runs and (project / "params.yaml").read_bytes() == before
    assert (project / "there.mp4").read_bytes() == b"mine"


def test_a_pipeline_that_fails_is_reported_with_what_to_do(
    project: Path, own: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(morph, "reproduce", lambda target: 255)
    with pytest.raises(UserError, match="exit code 255.*dvc repro morph@one-hill-two"):
        morph.run(own, ["a red hill", "a blue hill"], Path("clip.mp4"))


def test_other_settings_are_another_morph_of_the_same_set(
    project: Path, own: list[Path], runs: list[list[str]]
) -> None:
    for frames, steps in ((None, None), (40, None), (40, 4), (None, None), (40, 4)):
        morph.run(own, [], Path("clip.mp4"), frames=frames, steps=steps, force=True)
    assert [command[-1].removeprefix("morph@one-hill-two") for command in runs] == ["", "-2", "-3", "", "-3"]
    params = load_params(project / "params.yaml")
    assert list(params.sets) == ["hills", "dots", "one-hill-two"]
    made = [params.morphs[f"one-hill-two{end}"] for end in ("", "-2", "-3")]
    assert {spec.set for spec in made} == {"one-hill-two"}
    shared = params.morph.steps
    assert [(spec.morph.frames, spec.morph.steps, spec.morph.inversion_steps) for spec in made] == [
        (31, shared, shared), (40, shared, shared), (40, 4, 4),
    ]  # fmt: skip


def test_more_pictures_get_the_frames_of_the_params(project: Path, own: list[Path], runs: list[list[str]]) -> None:
    morph.run([*own, project / "data/raw/hills/blue.png"], ["a hill"], Path("clip.mp4"))
    params = load_params(project / "params.yaml")
    assert params.morphs["one-hill-two-blue"].morph == params.morph
