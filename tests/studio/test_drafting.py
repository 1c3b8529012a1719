"""A draft as a command of the command line, and every mistake beside its field in the words of `morphline check`."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.main import get_command

from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.studio.fields import comments_of, fields_of
from pipeline.studio.jobs import MOST_WAITING
from pipeline.studio.server import Studio
from tests.project import SHIPPED, with_values
from tests.studio.test_uploads import picture, put

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


@pytest.fixture
def idle(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Studio:
    """Jobs wait."""
    monkeypatch.setattr(studio.runner, "start", lambda: None)
    monkeypatch.setattr(studio.runner, "stop", lambda: None)
    return studio


@pytest.fixture
def dropped(idle: Studio, browser: TestClient) -> tuple[str, list[str]]:
    draft = browser.post("/api/drafts").json()["draft"]
    return draft, [put(browser, draft, picture(seed), f"p{seed}.png").json()["name"] for seed in range(3)]


def form_of(names: list[str], **values: Any) -> dict[str, Any]:
    return {"title": "", "pictures": [{"name": name, "caption": f"a {name}"} for name in names], **values}


def parsed(command: list[str]) -> dict[str, Any]:
    """What the command line makes of a job's command."""
    with COMMANDS[command[0]].make_context(command[0], list(command[1:])) as context:
        return dict(context.params)


def test_a_form_is_the_command_that_a_person_would_type(
    idle: Studio, browser: TestClient, dropped: tuple[str, list[str]]
) -> None:
    draft, names = dropped
    settings = {"train.steps": "7", "morph.negative": "dark, --out x"}
    chosen = {"frames": "5", "seconds": "2", "hold": "1", "loop": True, "pacing": "linear", "style": "dots"}
    form = form_of([names[2], names[0]], title="Großer See", settings=settings, **chosen)
    form["pictures"][0] |= {"caption": '--force "$(x)"', "focus": [0.25, 1]}
    answer = browser.post(f"/api/drafts/{draft}/morph", json=form)
    assert answer.status_code == 201 and answer.json()["key"] == "grosser-see"
    (job,) = idle.queue.all()
    given = parsed(list(job.command))
    assert [str(path) for path in given["pictures"]] == [
        f".work/studio/drafts/{draft}/pictures/{name}" for name in (names[2], names[0])
    ]
    assert given["caption"] == ['--force "$(x)"', f"a {names[0]}"] and given["focus"] == ["0.2500,1.0000", ""]
    assert (given["key"], given["style"]) == ("grosser-see", "dots")
    assert given["measure"] and given["preview"] and given["force"]
    assert str(given["out"]) == f".work/studio/jobs/{job.id}/clip.mp4"
    assert sorted(given["settings"]) == [
        "morph.fps=2", "morph.frames=5", "morph.hold=1", "morph.loop=true", "morph.negative=dark, --out x",
        "morph.pacing=linear", "train.steps=7",
    ]  # fmt: skip


def test_two_of_one_name_get_two_keys(idle: Studio, browser: TestClient, dropped: tuple[str, list[str]]) -> None:
    draft, names = dropped
    keys = [browser.post(f"/api/drafts/{draft}/morph", json=form_of(names, title=title)).json()["key"]
            for title in ("lake", "Lake", "hills", "", "none")]  # fmt: skip
    assert keys == ["lake", "lake-2", "hills-2", "p0-p1-p2", "none-2"]


@pytest.mark.parametrize(("count", "own", "fps"), [(2, {}, "12"), (2, {"frames": "16"}, "6"), (3, {}, "0.8")])
def test_seconds_are_those_of_the_clip_that_is_made(
    idle: Studio, browser: TestClient, dropped: tuple[str, list[str]], count: int, own: dict[str, str], fps: str
) -> None:
    """Two pictures get 31 frames, where nothing else is said; the project's params say 3."""
    draft, names = dropped
    form = form_of(names[:count], title="t", seconds="2.5", **own)
    assert browser.post(f"/api/drafts/{draft}/morph", json=form).status_code == 201
    assert f"--set=morph.fps={fps}" in idle.queue.all()[-1].command


def test_of_many_at_once_each_gets_a_key_of_its_own(
    idle: Studio, browser: TestClient, dropped: tuple[str, list[str]]
) -> None:
    draft, names = dropped
    form = form_of(names, title="same")
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: browser.post(f"/api/drafts/{draft}/morph", json=form), range(6)))
    assert sorted(answer.json()["key"] for answer in answers) == ["same", *(f"same-{number}" for number in range(2, 7))]


def test_a_style_is_queued_whole_or_not_at_all(
    idle: Studio, browser: TestClient, dropped: tuple[str, list[str]]
) -> None:
    draft, names = dropped
    for number in range(MOST_WAITING - 1):
        idle.queue.add("morph", "many", [], f"key-{number}")
    answer = browser.post(f"/api/drafts/{draft}/style", json=form_of(names, title="Ink", over="hills"))
    assert answer.status_code == 422 and f"{MOST_WAITING} jobs are waiting" in answer.text
    assert len(idle.queue.all()) == MOST_WAITING - 1


@pytest.mark.parametrize(("values", "where", "message"), [
    ({"frames": "2"}, "frames", "found 2. It should be greater than or equal to 3."),
    ({"frames": "many"}, "frames", "found 'many'. It should be a valid integer."),
    ({"hold": "-1"}, "hold", "found -1. It should be greater than or equal to 0."),
    ({"seconds": "0"}, "seconds", "found '0'. Write a number of seconds"),
    ({"frames": "500", "seconds": "1"}, "seconds", "500 frames in 1 seconds. From 0.01 to 120 a second"),
    ({"pacing": "quick"}, "pacing", "found 'quick'. It should be 'linear' or 'perceptual'"),
    ({"settings": {"morph.solver": "euler"}}, "morph.solver", "found 'euler'. It should be 'midpoint' or 'ddim'."),
    ({"settings": {"train.rank": "0"}}, "train.rank", "found 0. It should be greater than or equal to 1."),
    ({"settings": {"train.nosuch": "1"}}, "train.nosuch", "unknown key. "),
    ({"settings": {"machine.device": "cpu"}}, "machine.device", "found 'machine.device=cpu'. Write SECTION.NAME=VALUE"),
    ({"settings": {"morph.negative": "{"}}, "morph.negative", "not valid YAML"),
    ({"title": "山"}, "title", "found '山'. Use some letters or digits"),
    ({"style": "hills"}, "style", "found 'hills'. Choose from: dots."),
    ({"pictures": []}, "pictures", "0 given. A morph needs two or more."),
    ({"pictures": [{"name": "p0.png"}, {"name": "p0.png"}]}, "pictures.1", "the picture is not here any more"),
    ({"pictures": [{"name": "p0.png"}, {"name": "../../params.yaml"}]}, "pictures.1", "the picture is not here"),
    ({"pictures": [{"name": "p0.png", "caption": "2024-05-01"}, {"name": "p1.png"}]}, "pictures.0.caption",
     "only a date"),
    ({"pictures": [{"name": "p0.png", "caption": "a\u0000b"}, {"name": "p1.png"}]}, "pictures.0.caption",
     "control char"),
])  # fmt: skip
def test_a_mistake_is_beside_its_field(
    idle: Studio, browser: TestClient, dropped: tuple[str, list[str]], values: dict[str, Any], where: str, message: str
) -> None:
    draft, names = dropped
    for what in ("check", "morph"):
        answer = browser.post(f"/api/drafts/{draft}/{what}", json=form_of(names) | values)
        (problem,) = answer.json()["problems"]
        assert answer.status_code == 422 and problem["where"] == where
        assert message in f"{problem['found']}. {problem['fix']}"
    assert idle.queue.all() == []


def test_the_words_are_those_of_check(idle: Studio, browser: TestClient, dropped: tuple[str, list[str]]) -> None:
    draft, names = dropped
    for name, value in (("train.rank", 0), ("morph.steps", 1), ("morph.attention_until", 2), ("prepare.width", 100)):
        answer = browser.post(f"/api/drafts/{draft}/check", json=form_of(names, settings={name: str(value)}))
        (ours,) = answer.json()["problems"]
        text = Path("params.yaml").read_text(encoding="utf-8")
        Path("wrong.yaml").write_text(with_values(text, {name: value}), encoding="utf-8")
        with pytest.raises(UserError) as error:
            load_params(Path("wrong.yaml"))
        (theirs,) = error.value.problems
        assert (ours["found"], ours["fix"], f"wrong.yaml: {ours['where']}") == (theirs.found, theirs.fix, theirs.where)


def test_a_style_of_pictures_is_two_jobs_and_one_that_is_there_is_one(
    idle: Studio, browser: TestClient, dropped: tuple[str, list[str]]
) -> None:
    draft, names = dropped
    form = form_of(names, title="Ink", over="hills", weight="0.5", strength="0.6")
    answer = browser.post(f"/api/drafts/{draft}/style", json=form)
    first, second = idle.queue.all()
    assert answer.json()["job"] == second.id and (first.kind, second.kind) == ("set", "edit")
    given = parsed(list(first.command))
    assert (given["key"], given["adapter"], given["caption"]) == ("ink", "set", [f"a {name}" for name in names])
    given = parsed(list(second.command))
    assert (given["key"], given["adapters"], given["name"]) == ("hills", ["ink:0.5"], "hills-ink")
    assert given["settings"] == ["edit.strength=0.6"]
    answer = browser.post(f"/api/drafts/{draft}/style", json={"style": "dots", "over": "hills"})
    assert parsed(list(idle.queue.all()[-1].command))["adapters"] == ["dots:1"] and len(answer.json()["jobs"]) == 1


@pytest.mark.parametrize(("values", "where"), [
    ({"over": "nosuch"}, "over"), ({"style": "hills"}, "style"), ({"pictures": []}, "pictures"),
    ({"weight": "5"}, "weight"),
    ({"weight": "x"}, "weight"), ({"strength": "2"}, "strength"), ({"steps": "0"}, "steps"), ({"title": "!"}, "title"),
])  # fmt: skip
def test_a_mistake_in_a_style_is_beside_its_field(
    idle: Studio, browser: TestClient, dropped: tuple[str, list[str]], values: dict[str, Any], where: str
) -> None:
    draft, names = dropped
    answer = browser.post(f"/api/drafts/{draft}/style", json=form_of(names, over="hills") | values)
    assert answer.status_code == 422 and [problem["where"] for problem in answer.json()["problems"]] == [where]


def test_every_field_has_the_comment_and_the_range_of_params_yaml(small_project: Path) -> None:
    text, params = Path("params.yaml").read_text(encoding="utf-8"), load_params()
    fields = {field.name: field for section in fields_of(params, text).values() for field in section}
    assert not [name for name, field in fields.items() if not field.comment]
    steps = fields["morph.steps"]
    assert (steps.comment, steps.lowest, steps.highest) == (
        "Steps of sampling, 2 to 1000. More: finer, slower.",
        2,
        1000,
    )
    assert fields["prepare.max_megapixels"].comment.startswith("larger raw pictures are refused")
    assert "max_megapixels" not in fields["prepare.background"].comment
    assert fields["morph.attention_until"].comment.startswith("for which first share of the steps")
    assert fields["morph.solver"].choices == ["midpoint", "ddim"] and fields["morph.adain"].value == "true"
    assert comments_of(SHIPPED, "tracking", ["uri"]).keys() == {"uri"}


def test_the_pages_have_a_label_for_every_field_and_no_two_of_one_id(browser: TestClient) -> None:
    for path in ("/new", "/style"):
        page = browser.get(path).text
        ids = re.findall(r'\bid="([^"]+)"', page)
        assert len(ids) == len(set(ids))
        for field in re.findall(r'<(?:input|select)\b[^>]*\bid="([^"]+)"', page):
            assert f'<label for="{field}"' in page or f'for="{field}"' in page, field
