import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from pipeline.commands import quick
from pipeline.errors import UserError
from pipeline.params import load_params
from tests.project import paint


@pytest.mark.parametrize(
    ("name", "key"), [("Großer See (2)", "grosser-see-2"), ("a_b.c", "a-b-c"), ("山", ""), ("--x--", "x"), ("É", "e")]
)
def test_names_become_valid_keys(name: str, key: str) -> None:
    assert quick.slugify(name) == key


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

    def call(command: list[str]) -> int:
        called.append(command[1:])
        out = Path("data/morphs") / command[-1].removeprefix("morph@")
        shutil.copytree(ran / "data/morphs/hills", out, dirs_exist_ok=True)
        return 0

    monkeypatch.setattr(subprocess, "call", call)
    return called


def test_pictures_become_a_set_and_a_morph_and_the_clip_is_written(
    project: Path, own: list[Path], runs: list[list[str]], ran: Path
) -> None:
    captions = ["a red hill", "a blue hill"]
    made = quick.run(own, captions, Path("out/hill.mp4"))
    assert made.read_bytes() == (ran / "data/morphs/hills/morph.mp4").read_bytes()
    assert runs == [["-m", "dvc", "repro", "morph@one-hill-two"]]
    params = load_params(project / "params.yaml")
    assert params.morphs["one-hill-two"].keyframes == ("One Hill.png", "two.png")
    gif = quick.run(own, captions, Path("out/hill.gif"))
    with Image.open(gif) as image, Image.open(ran / "data/morphs/hills/morph.webp") as webp:
        assert image.n_frames == webp.n_frames and image.size == webp.size and image.info["loop"] == 0
    assert runs[1] == runs[0], "the same pictures and captions were added twice"
    quick.run(own, ["a red hill", "a blue lake"], Path("out/other.webp"))
    assert runs[2][-1] == "morph@one-hill-two-2"


def test_nothing_is_made_or_replaced_for_a_mistake(project: Path, own: list[Path], runs: list[list[str]]) -> None:
    before = (project / "params.yaml").read_bytes()
    (project / "there.mp4").write_bytes(b"mine")
    for out, captions, message in (
        ("clip.avi", ["a", "b"], "ends in .mp4, .webp, .gif, or a folder"),
        ("there.mp4", ["a", "b"], "exists already"),
        ("clip.mp4", ["a"], "1 captions for 2 pictures"),
    ):
        with pytest.raises(UserError, match=message):
            quick.run(own, captions, Path(out))
    assert not runs and (project / "params.yaml").read_bytes() == before
    assert (project / "there.mp4").read_bytes() == b"mine"


def test_a_pipeline_that_fails_is_reported_with_what_to_do(
    project: Path, own: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "call", lambda command: 255)
    with pytest.raises(UserError, match="exit code 255.*dvc repro morph@one-hill-two"):
        quick.run(own, ["a red hill", "a blue hill"], Path("clip.mp4"))
