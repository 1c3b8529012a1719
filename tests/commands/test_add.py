"""`morphline add`: a set and a morph of one's own, an entry each in params.yaml, and no other byte touched."""

import difflib
import errno
import json
import os
import unicodedata
from pathlib import Path

import pytest
from click.testing import Result
from dvc.utils.hydra import apply_overrides
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.params import load_params
from tests.project import SHIPPED, contents, edit, paint

CAPTIONS = ("--caption", 'a red hill: "dawn" # 1', "--caption", "ein blauer See")


def add(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["add", *map(str, arguments)])


def refused(*arguments: object) -> list[str]:
    """The problems that `add` reports; nothing may have changed but a lock in .work."""
    before = contents(Path(), ".work")
    folders = sorted(path for path in Path().rglob("*") if path.is_dir() and path.name != ".work")
    answer = add(*arguments)
    assert answer.exit_code == 1 and answer.stdout == "" and "Traceback" not in answer.stderr
    assert contents(Path(), ".work") == before
    assert sorted(path for path in Path().rglob("*") if path.is_dir() and path.name != ".work") == folders
    first, *problems = answer.stderr.splitlines()
    assert first == f"morphline add: {len(problems)} problem(s)"
    return [problem.strip() for problem in problems]


@pytest.fixture
def pictures(project: Path) -> list[Path]:
    """Two pictures outside of the project, with names as people have them; one in decomposed Unicode."""
    folder = project.parent / "my pictures"
    folder.mkdir()
    names = [unicodedata.normalize("NFD", "späte Dämmerung, 1.jpg"), "Hügel & Söhne (2).PNG"]
    for number, name in enumerate(names):
        paint(folder / name, 40 + number)
    return [folder / name for name in names]


def lines_added(before: str, after: str) -> list[str]:
    """The lines that `after` has more than `before`, which must otherwise be the same, to the byte."""
    both = [text.splitlines(keepends=True) for text in (before, after)]
    changes = list(difflib.unified_diff(*both, n=0))[2:]
    assert not [line for line in changes if line.startswith("-")]
    return [line[1:] for line in changes if line.startswith("+")]


def test_a_set_and_a_morph_are_added_and_every_other_byte_of_params_stays(project: Path, pictures: list[Path]) -> None:
    before = Path("params.yaml").read_bytes().decode()
    answer = add("my-own", *pictures, *CAPTIONS)
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert "data/morphs/my-own/morph.mp4" in answer.stdout
    assert lines_added(before, Path("params.yaml").read_bytes().decode()) == [
        "  my-own: {adapter: image, prepare: {}, train: {}, sample: {}}\n",
        "  my-own:\n",
        "    set: my-own\n",
        "    style: none\n",
        "    keyframes:\n",
        "    - späte Dämmerung, 1.jpg\n",
        "    - Hügel & Söhne (2).PNG\n",
        "    morph: {}\n",
    ]
    morph = load_params().get_morph("my-own")
    assert morph.keyframes == ("späte Dämmerung, 1.jpg", "Hügel & Söhne (2).PNG") and morph.set == "my-own"
    folder = Path("data/raw/my-own")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"file_name": "späte Dämmerung, 1.jpg", "text": 'a red hill: "dawn" # 1'},
        {"file_name": "Hügel & Söhne (2).PNG", "text": "ein blauer See"},
    ]
    for row, picture in zip(rows, pictures, strict=True):
        assert (folder / row["file_name"]).read_bytes() == picture.read_bytes()


def test_the_result_passes_check_and_can_be_prepared(project: Path, pictures: list[Path]) -> None:
    assert add("my-own", *pictures, *CAPTIONS).exit_code == 0
    answer = CliRunner().invoke(app, ["check"])
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert CliRunner().invoke(app, ["prepare", "my-own"]).exit_code == 0
    assert len(list(Path("data/prepared/my-own").glob("*.png"))) == 2


def test_it_works_again_and_again(project: Path, pictures: list[Path]) -> None:
    before = Path("params.yaml").read_bytes().decode()
    for key in ("one", "123", "null"):  # the latter two would be no texts if YAML read them as they are
        assert add(key, *pictures, *CAPTIONS).exit_code == 0
    assert len(lines_added(before, Path("params.yaml").read_bytes().decode())) == 3 * 8
    params = load_params()
    assert list(params.sets) == list(params.morphs) == ["hills", "dots", "one", "123", "null"]
    assert CliRunner().invoke(app, ["check"]).exit_code == 0


LAYOUTS = {
    "as shipped": lambda text: text,
    "windows": lambda text: text.replace("\n", "\r\n"),
    "written out": lambda text: text.replace(
        "  dots: {set: dots, style: none, keyframes: [d3.png, d1.png], morph: {frames: 4}}\n",
        "  dots:   # mine\n    set: dots\n    style: none\n    morph:\n      frames: 4   # few\n"
        "    keyframes:\n    - d3.png\n    - d1.png  # last\n    # nothing after it\n\n\n",
    ),
    "no morphs yet": lambda text: (
        text[: text.index("  hills: {set:")].removesuffix("morphs:\n")
        + "morphs: {}  # none\n"
        + text[text.index("\n# Edits:") :]
    ),
    "in braces, with a comma at the end": lambda text: (
        text.replace("morphs:\n", "morphs: {\n")
        .replace("morph: {}}\n", "morph: {}},  # one\n", 1)
        .replace("morph: {frames: 4}}\n", "morph: {frames: 4}},  # two\n}\n")
    ),
    "morphs last": lambda text: (
        text[: text.index("# Morphs:")]
        + text[text.index("# Edits:") :].rstrip("\n")
        + "\nmorphs:\n  dots: {set: dots, style: none, keyframes: [d3.png, d1.png], morph: {}}"
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_however_the_user_has_laid_out_the_file(project: Path, pictures: list[Path], layout: str) -> None:
    params = Path("params.yaml")
    params.write_bytes(LAYOUTS[layout](params.read_text(encoding="utf-8")).encode())
    before, old = params.read_bytes().decode(), load_params()
    answer = add("my-own", *pictures, *CAPTIONS)
    assert (answer.exit_code, answer.stderr) == (0, "")
    after, new = params.read_bytes().decode(), load_params()
    assert {**old.sets, "my-own": new.sets["my-own"]} == new.sets
    assert {**old.morphs, "my-own": new.morphs["my-own"]} == new.morphs
    assert new.model_copy(update={"sets": old.sets, "morphs": old.morphs}) == old
    kept = iter(after)
    assert all(character in kept for character in before), "something of the file is gone"
    assert after.count("\r") == (after.count("\n") if layout == "windows" else 0)


def test_the_shipped_file_itself_keeps_every_byte(project: Path, pictures: list[Path]) -> None:
    Path("params.yaml").write_text(SHIPPED, encoding="utf-8")
    assert add("my-own", *pictures, *CAPTIONS).exit_code == 0
    assert len(lines_added(SHIPPED, Path("params.yaml").read_text(encoding="utf-8"))) == 8


@pytest.mark.parametrize("key", ["hills", "taken"])
def test_nothing_is_overwritten(project: Path, pictures: list[Path], key: str) -> None:
    (project / "data/raw/taken").mkdir()
    (problem,) = refused(key, *pictures, *CAPTIONS)
    assert problem == f"KEY: {key!r} exists already. Choose another key; nothing is overwritten."


@pytest.mark.parametrize(("given", "expected"), [
    ([], ["", ""]), (["a lake"], ["a lake", "a lake"]), ([" a ", ""], ["a", ""]),
])  # fmt: skip
def test_captions_may_be_one_for_all_or_none(
    project: Path, pictures: list[Path], given: list[str], expected: list[str]
) -> None:
    assert add("my-own", *pictures, *(part for text in given for part in ("--caption", text))).exit_code == 0
    lines = Path("data/raw/my-own/metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == expected
    assert CliRunner().invoke(app, ["check"]).exit_code == 0
    assert CliRunner().invoke(app, ["prepare", "my-own"]).exit_code == 0


def test_an_experiment_leaves_what_was_added_as_it_is(project: Path, pictures: list[Path]) -> None:
    """With entries longer than a line, which DVC breaks, too."""
    Path("params.yaml").write_text(SHIPPED, encoding="utf-8")
    many = [project.parent / f"a picture with a long name, number {number}.png" for number in range(5)]
    for path in many:
        paint(path, 3)
    captions = [part for path in many for part in ("--caption", path.stem)]
    assert add("my-own", *pictures, *CAPTIONS).exit_code == add("many", *many, *captions).exit_code == 0
    before = Path("params.yaml").read_text(encoding="utf-8")
    for _ in range(2):
        apply_overrides("params.yaml", ["train.rank=8"])
        assert Path("params.yaml").read_text(encoding="utf-8") == before
    assert load_params().get_morph("many").keyframes == tuple(path.name for path in many)


@pytest.mark.parametrize("key", ["My Own", "../up", "späte", "-x", ""])
def test_an_invalid_key(project: Path, pictures: list[Path], key: str) -> None:
    (problem,) = refused("--caption", "a", "--caption", "b", "--", key, *pictures)
    assert problem.startswith(f"KEY: found {key!r}. Allowed: lower-case letters")


def test_all_mistakes_of_the_command_are_reported_at_once(project: Path, pictures: list[Path]) -> None:
    problems = refused("No Key", pictures[0], "nowhere.jpg", pictures[0], "--caption", "one", "--caption", "two")
    assert len(problems) == 5
    for start in ("KEY: ", "--caption: 2 captions for 3 pictures", "nowhere.jpg: there is no such file"):
        assert [problem for problem in problems if problem.startswith(start)]
    assert len([problem for problem in problems if "would both be called" in problem]) == 2
    (problem,) = refused("my-own", pictures[0], "--caption", "one")
    assert problem.startswith("PICTURES: 1 given")


def test_files_that_are_not_pictures_are_refused_and_nothing_is_left(project: Path, pictures: list[Path]) -> None:
    cut, text = project.parent / "cut.jpg", project.parent / "text.png"
    cut.write_bytes(pictures[0].read_bytes()[:300])
    text.write_text("no picture")
    captions = [part for number in range(3) for part in ("--caption", f"caption {number}")]
    problems = refused("my-own", pictures[0], cut, text, *captions)
    assert len(problems) == 2
    for name, problem in zip(("cut.jpg", "text.png"), problems, strict=True):
        assert name in problem and "partial" not in problem, "the message names a folder that is gone"


def test_captions_and_names_that_a_set_cannot_have_are_refused(project: Path, pictures: list[Path]) -> None:
    split = project.parent / "test.jpg"
    paint(split, 3)
    problems = refused("my-own", pictures[0], split, "--caption", " ", "--caption", "b")
    assert ["blank" in problems[0], "'test'" in problems[1]] == [True, True] and len(problems) == 2


def test_an_invalid_params_file_is_reported_first(project: Path, pictures: list[Path]) -> None:
    edit(Path("params.yaml"), lambda text: text.replace("  rank: 2", "  rank: many"))
    (problem,) = refused("my-own", *pictures, *CAPTIONS)
    assert problem.startswith("params.yaml: train.rank: found 'many'")


def test_a_disk_that_refuses_leaves_nothing(
    project: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(project, ".work")
    rename = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "params.yaml":
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert refused("my-own", *pictures, *CAPTIONS)[0].startswith(
        "params.yaml: No space left on device. Make room there."
    )
    assert contents(project, ".work") == before and not (project / "data/raw/my-own").exists()


def test_a_caption_that_the_base_would_not_read_is_refused_before_it_is_in_everybodys_way(
    project: Path, pictures: list[Path]
) -> None:
    problems = refused("my-own", *pictures, "--caption", "a red hill", "--caption", "hill " * 80)
    assert [problem.partition(": ")[2] for problem in problems] == [
        "the caption has 82 tokens, the base reads 64. Shorten it by 18 or more."
    ]
    assert (
        add("my-own", *pictures, "--caption", "a hill of which there is much to say, and all of it is read").exit_code
        == 0
    )


def test_settings_that_would_do_nothing_are_refused(project: Path, pictures: list[Path]) -> None:
    (problem,) = refused("my-own", *pictures, "--adapter", "set", "--set", "morph.frames=5")
    assert problem.startswith("--set: a set with one adapter gets no morph. Leave out what is of `morph`.")
    (problem,) = refused("my-own", *pictures, "--set", "train.steps=5", "--set", "train.steps=6")
    assert problem == "--set train.steps: it is given twice. Leave one of them out."


def test_pictures_may_lie_in_the_project_itself(project: Path) -> None:
    answer = add("my-own", "data/raw/hills/blue.png", "data/raw/dots/d0.png", *CAPTIONS)
    assert answer.exit_code == 0
    with Image.open("data/raw/my-own/blue.png") as ours, Image.open("data/raw/hills/blue.png") as theirs:
        assert ours.tobytes() == theirs.tobytes()
