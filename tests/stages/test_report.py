"""The page: everything in it, nothing outside it, the same at any time and place."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.project import HILLS

LINKS = ("src", "href", "srcset", "poster", "data")


class Page(HTMLParser):
    """What a page shows and what it asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.alternatives: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attributes)
        self.links += [value or "" for name, value in given.items() if name in LINKS]
        if tag == "img":
            self.alternatives.append(given.get("alt") or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def text(ran: Path) -> str:
    return (ran / "reports/index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_page_needs_nothing_but_itself(page: Page, text: str) -> None:
    assert page.links and all(link.startswith("data:image/") for link in page.links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?://", text)
    for link in page.links:
        with Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) as image:
            image.load()


def test_the_page_shows_every_clip_strip_keyframe_curve_and_grid(ran: Path, page: Page) -> None:
    shown = {base64.b64decode(link.partition(",")[2]) for link in page.links}
    files = [
        *(ran / f"data/prepared/hills/{Path(name).stem}.png" for name in HILLS),
        *(ran / f"data/prepared/dots/{name}.png" for name in ("d3", "d1")),
        *(ran / f"data/morphs/{key}/{file}" for key in ("hills", "dots") for file in ("morph.webp", "strip.png")),
        *(ran / f"reports/{kind}/{key}.png" for key in ("hills", "dots") for kind in ("smoothness", "samples")),
    ]
    assert not [path for path in files if path.read_bytes() not in shown]
    assert len(shown) == len(files) + 2, "and the training curves of both sets"
    assert all(page.alternatives), "a picture without a text for those who cannot see it"


def test_captions_are_text_and_not_markup(page: Page) -> None:
    assert "b" not in page.tags
    assert HILLS["großer See.jpg"] in page.words and HILLS["großer See.jpg"] in page.alternatives


def test_the_page_has_the_figures(ran: Path, page: Page) -> None:
    words = " ".join(page.words)
    for key in ("hills", "dots"):
        figures = json.loads((ran / f"reports/metrics/{key}.json").read_text(encoding="utf-8"))
        for variant in figures.values():
            assert f"{variant['neighbours_sum']:.2f}" in words
        assert f"{figures['morph']['endpoints_psnr']:.1f}" in words


def test_nothing_volatile_is_in_the_page(ran: Path, text: str) -> None:
    plain = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", text)
    assert not re.search(r"\d\d:\d\d|\b20\d\d\b", plain), "a date or a time"
    for place in (str(ran), str(Path.home()), "/tmp"):
        assert place not in plain or len(place) < 3


def test_the_figures_in_brief_are_those_in_full(ran: Path) -> None:
    brief = json.loads((ran / "reports/metrics.json").read_text(encoding="utf-8"))
    assert list(brief) == ["hills", "dots"]
    for key, figures in brief.items():
        full = json.loads((ran / f"reports/metrics/{key}.json").read_text(encoding="utf-8"))["morph"]
        assert figures == {
            "endpoint_psnr": pytest.approx(full["endpoints_psnr"], abs=1e-3),
            "endpoint_gap": pytest.approx(full["endpoints_worst_psnr_gap"], abs=1e-3),
            "path_length": pytest.approx(full["neighbours_sum"], abs=1e-4),
            "max_over_mean": pytest.approx(full["neighbours_max_over_mean"], abs=1e-4),
        }
