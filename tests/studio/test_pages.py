"""The studio's pages for people who use a keyboard or a screen reader: names, labels, headings, focus, contrast."""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from pipeline.frames.clips import frame_name
from pipeline.params import load_params
from pipeline.studio.gallery import frame_file
from pipeline.studio.jobs import Queue
from pipeline.studio.project import Project
from pipeline.studio.runner import Runner
from pipeline.studio.server import Studio, create_app
from pipeline.studio.uploads import Draft
from tests.declarations import ROOT
from tests.studio.conftest import ORIGIN, TOKEN

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
PATHS = (
    "/", "/new/DRAFT", "/style/DRAFT", "/jobs", "/jobs/JOB", "/morphs/hills", "/morphs/dots", "/edits/hills",
    "/sets/hills", "/sets/dots", "/compare?a=hills&b=dots", "/nothing-is-here",
)  # fmt: skip
CSS = {
    name: re.sub(r"/\*.*?\*/", "", (ROOT / "pipeline" / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    for name in ("report/templates/page.css", "studio/pages/studio.css")
}


class Page(HTMLParser):
    """The elements of a page, each with its attributes, the tags around it and the text within it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[dict[str, str]] = []
        self._open: list[dict[str, str]] = []
        self.feed(text)
        assert not self._open, f"left open: {[one['tag'] for one in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        around = " ".join(one["tag"] for one in self._open)
        element = {**{name: value or "" for name, value in attrs}, "tag": tag, "around": around, "within": ""}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element["within"] += data

    def all(self, *tags: str) -> list[dict[str, str]]:
        return [one for one in self.elements if one["tag"] in tags]


def studio_here() -> Studio:
    queue = Queue()
    return Studio(Project(load=load_params, morphline=["true"]), Runner(queue, ["true"]))


@pytest.fixture(scope="module")
def site(ran: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Page]]:
    """All pages, of a project in which everything is made, by their paths."""
    project = Path(shutil.copytree(ran, tmp_path_factory.mktemp("site") / "project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        queue = Queue()
        job = queue.add("morph", "A job", [], "hills")
        queue.change(job.id, status="failed", problems=("it failed",))
        studio = Studio(Project(load=load_params, morphline=["true"]), Runner(queue, ["true"]))
        draft = Draft.new().key
        with TestClient(create_app(studio, TOKEN), base_url=ORIGIN) as client:
            client.get(f"/?token={TOKEN}")
            pages = {}
            for path in PATHS:
                asked = path.replace("DRAFT", draft).replace("JOB", job.id)
                answer = client.get(asked, headers={"accept": "text/html"})
                assert answer.status_code == (404 if "nothing" in path else 200), path
                pages[path] = Page(answer.text)
            client.cookies.clear()
            answer = client.get("/", headers={"accept": "text/html"})
            assert answer.status_code == 403 and "has not its token" in answer.text
            stranger = answer.text
        yield pages
    assert "<h1>" in stranger and "<script" not in stranger and "/static" not in stranger


@pytest.mark.parametrize("path", PATHS)
def test_a_page_has_a_language_a_title_and_one_heading_above_the_others(site: dict[str, Page], path: str) -> None:
    page = site[path]
    assert [one["lang"] for one in page.all("html")] == ["en"]
    assert [one["within"].endswith("Morphline studio") for one in page.all("title")] == [True]
    assert len(page.all("main")) == len(page.all("h1")) == 1
    assert page.all("h1")[0]["within"].strip()
    levels = [int(one["tag"][1]) for one in page.all("h1", "h2", "h3")]
    assert levels[0] == 1 and all(deeper <= level + 1 for level, deeper in zip(levels, levels[1:], strict=False))
    assert page.elements[[one["tag"] for one in page.elements].index("body") + 1]["href"] == "#main", "skip comes first"


@pytest.mark.parametrize("path", PATHS)
def test_everything_that_is_filled_in_or_pressed_has_a_name(site: dict[str, Page], path: str) -> None:
    page = site[path]
    labelled = {one["for"] for one in page.all("label") if "for" in one and one["within"].strip()}
    nameless = [
        one
        for one in page.all("input", "select", "textarea", "progress")
        if one.get("type") != "hidden"
        and not (one.get("id") in labelled or "label" in one["around"].split() or is_named(one))
    ]
    nameless += [
        one for one in page.all("button", "a", "summary") if not (one["within"].strip() or is_named(one))
        and not any(inner["alt"] for inner in page.all("img") if one["tag"] in inner["around"].split())
    ]  # fmt: skip
    assert not nameless


def is_named(element: dict[str, str]) -> bool:
    return bool(element.get("aria-label") or element.get("aria-labelledby"))


@pytest.mark.parametrize("path", PATHS)
def test_pictures_are_told_in_words_and_what_is_referred_to_is_there(site: dict[str, Page], path: str) -> None:
    page = site[path]
    silent = [one for one in page.all("img") if not one.get("alt") and "template" not in one["around"].split()]
    assert not silent, "a template's are told by the script that fills it in"
    ids = Counter(one["id"] for one in page.elements if "id" in one)
    assert max(ids.values()) == 1, ids.most_common(1)
    names = ("for", "aria-labelledby", "aria-describedby", "list")
    referred = {part for one in page.elements for name in names for part in one.get(name, "").split()}
    assert referred <= ids.keys()
    scrolling = [one for one in page.elements if one.get("class") in ("wide", "plots")]
    assert all(one.get("tabindex") == "0" and is_named(one) for one in scrolling), "what scrolls is reached by keys"


def rules() -> list[tuple[str, str]]:
    return [(names.strip(), body) for text in CSS.values() for names, body in re.findall(r"([^{}]+)\{([^{}]*)\}", text)]


def test_focus_is_seen_everywhere() -> None:
    """The two exceptions: the page as a whole, and an input that lies hidden in a box which is outlined for it."""
    found = dict(rules())
    assert "3px solid var(--accent)" in found[":focus-visible"]
    without = {names for names, body in rules() if re.search(r"outline\s*:\s*(none|0)", body)}
    assert without == {"main:focus", ".hidden-input:focus-visible"}
    assert "3px solid var(--accent)" in found[".drop:has(.hidden-input:focus-visible)"]


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.2."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    shares = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_words_stand_out_from_their_ground(dark: bool) -> None:
    """4.5 to 1 at least, by WCAG 2.2."""
    colours: dict[str, str] = {}
    for _, body in [rule for rule in rules() if rule[0].endswith(":root")]:
        for name, value in re.findall(r"--(\w+):\s*(#\w+)", body):
            colours[name] = value if dark or name not in colours else colours[name]
    pairs = [
        (ink, ground) for ink in ("ink", "soft", "accent", "wrong", "right") for ground in ("paper", "card", "wash")
    ]
    for ink, ground in [*pairs, ("paper", "accent")]:
        light, low = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (low + 0.05) >= 4.5, f"{ink} on {ground}"


def test_what_is_damaged_is_told_with_the_file(made: Path) -> None:
    Path("data/morphs/hills/frames/0000.png").write_text("no picture")
    with TestClient(create_app(studio_here(), TOKEN), base_url=ORIGIN) as client:
        client.get(f"/?token={TOKEN}")
        answer = client.get("/media/morphs/hills/frames/0.webp")
        assert answer.status_code == 422 and "data/morphs/hills/frames/0000.png" in answer.text
        for content in ("[]", "{}", "nope", '{"set": "hills", "adapters": 3, "settings": {}}'):
            Path("data/edits/hills/edit.json").write_text(content)
            answer = client.get("/edits/hills", headers={"accept": "text/html"})
            assert answer.status_code == 422 and "data/edits/hills/edit.json" in answer.text, content


def test_frames_are_found_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for count in (5, 12_000):
        path = Path("data/morphs", str(count), "frames", frame_name(3, count))
        path.parent.mkdir(parents=True)
        path.touch()
        assert frame_file(str(count), "frames", 3) == path
        with pytest.raises(KeyError):
            frame_file(str(count), "frames", 4)
