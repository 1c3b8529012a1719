"""The page: everything in it, nothing outside it, the same at any time and place."""

import base64
import hashlib
import io
import json
import re
import tomllib
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from pipeline.frames.variants import CROSS_FADE, MORPH
from pipeline.report.viewer import MAX_FRAMES, alpha_of, describe_frame, frame_views
from tests.declarations import ROOT
from tests.project import HILLS

LINKS = ("src", "href", "srcset", "poster", "data", "data-still")
FOLDERS = {"morph": "frames", "without adapters": "no-lora", "cross-fade": "cross-fade"}


class Page(HTMLParser):
    """What a page shows and what it asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attributes)
        self.links += [value or "" for name, value in given.items() if name in LINKS]
        self.ids += [value or "" for name, value in given.items() if name == "id"]
        if tag == "img":
            self.pictures.append(given)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def alternatives(self) -> list[str]:
        return [given.get("alt") or "" for given in self.pictures]

    def frames(self, variant: str, of: int) -> list[dict[str, str | None]]:
        """The frames of a variant to scrub through. of: which morph, by its number of frames."""
        found = [given for given in self.pictures if re.match(f"{variant}, frame", given["alt"] or "")]
        return found[:5] if of == 5 else found[5:]


def content(link: str | None) -> bytes:
    return base64.b64decode((link or "").partition(",")[2])


def pixels(source: bytes | Path) -> np.ndarray:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return np.asarray(image.convert("RGB"), dtype=float)


def coarse(picture: np.ndarray) -> np.ndarray:
    """Means over 8x8 pixels: what lossy WebP keeps even of the coloured noise that a random base paints."""
    height, width = (side - side % 8 for side in picture.shape[:2])
    return picture[:height, :width].reshape(height // 8, 8, width // 8, 8, 3).mean((1, 3))


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(coarse(one) - coarse(other)).mean()) if one.shape == other.shape else np.inf


@pytest.fixture(scope="module")
def text(ran: Path) -> str:
    return (ran / "reports/index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_page_needs_nothing_but_itself(page: Page, text: str) -> None:
    outside = [link for link in page.links if not link.startswith(("data:image/", "#"))]
    assert page.links and not outside
    assert not {"link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest|import\(", text)
    assert "default-src 'none'; img-src data:" in text, "a browser would stop what slipped through"
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
            continue
        with Image.open(io.BytesIO(content(link))) as image:
            image.load()


def test_clips_and_curves_are_in_the_page_as_they_are(ran: Path, page: Page) -> None:
    embedded = {content(link) for link in page.links}
    files = [
        *(ran / f"data/morphs/{key}/morph.webp" for key in ("hills", "dots")),
        *(ran / f"reports/smoothness/{key}.png" for key in ("hills", "dots")),
    ]
    assert not [path for path in files if path.read_bytes() not in embedded]


def test_strips_grids_and_keyframes_look_as_they_are(ran: Path, page: Page) -> None:
    pictures = [pixels(content(given["src"])) for given in page.pictures]
    files = [
        *(ran / f"data/prepared/hills/{Path(name).stem}.png" for name in HILLS),
        *(ran / f"data/prepared/dots/{name}.png" for name in ("d3", "d1")),
        *(ran / f"data/morphs/{key}/strip.png" for key in ("hills", "dots")),
        *(ran / f"reports/samples/{key}.png" for key in ("hills", "dots")),
    ]
    for path in files:
        expected = pixels(path)
        assert min(difference(one, expected) for one in pictures) < 3, path


def test_every_frame_of_every_variant_can_be_scrubbed_to_once(ran: Path, page: Page) -> None:
    for key, count in (("hills", 5), ("dots", 4)):
        for variant, folder in FOLDERS.items():
            frames = page.frames(variant, count)
            assert len(frames) == count
            made = [pixels(ran / f"data/morphs/{key}/{folder}/{number:04}.png") for number in range(count)]
            for number, given in enumerate(frames):
                distances = [difference(pixels(content(given["src"])), frame) for frame in made]
                assert np.argmin(distances) == number and distances[number] < 3
            # Without a script, and before it runs, one frame is to be seen, the same of each variant.
            assert [number for number, given in enumerate(frames) if "hidden" not in given] == [1]


def test_a_frame_has_its_position_and_captions(page: Page) -> None:
    hills = [(given["data-position"], given["data-caption"]) for given in page.frames("morph", 5)]
    red, lake, blue = HILLS.values()
    assert hills == [
        ("position 0, keyframe", red),
        ("position 0.5", f"{red} → {lake}"),
        ("position 1, keyframe", lake),
        ("position 1.5", f"{lake} → {blue}"),
        ("position 2, keyframe", blue),
    ]


def test_a_frame_has_the_alpha_of_its_own_variant(ran: Path, page: Page) -> None:
    """The cross-fade is paced otherwise than the morph."""
    facts = json.loads((ran / "data/morphs/dots/morph.json").read_text(encoding="utf-8"))
    for variant in FOLDERS:
        found = [given["alt"] for given in page.frames(variant, 4)]
        alphas = [f"{alpha:.3g}" for alpha in facts["alphas"][variant][0]]
        assert found == [
            f"{variant}, frame 0, position 0, keyframe",
            f"{variant}, frame 1, position 0.333, alpha {alphas[1]}",
            f"{variant}, frame 2, position 0.667, alpha {alphas[2]}",
            f"{variant}, frame 3, position 1, keyframe",
        ]


def test_every_picture_has_an_alternative_text(page: Page) -> None:
    assert all(page.alternatives)


def test_captions_are_text_and_not_markup(page: Page) -> None:
    assert "b" not in page.tags
    caption = HILLS["großer See.jpg"]
    assert caption in page.words and f"Keyframe 2: {caption}" in page.alternatives


def test_the_page_has_the_figures(ran: Path, page: Page) -> None:
    words = " ".join(page.words)
    for key in ("hills", "dots"):
        figures = json.loads((ran / f"reports/metrics/{key}.json").read_text(encoding="utf-8"))
        for variant in figures.values():
            assert f"{variant['ppl']:.3f}" in words
            assert f"{variant['naturalness']:.2f}" in words
        assert f"{figures['morph']['endpoints_psnr']:.1f}" in words


def test_the_page_names_the_files_that_it_was_made_of_by_their_digests(ran: Path, page: Page) -> None:
    for path in sorted((ran / "models/adapters").rglob("*.safetensors")):
        assert f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" in page.words
    facts = json.loads((ran / "data/morphs/hills/morph.json").read_text(encoding="utf-8"))
    assert facts["base"] in page.words
    lines = [
        f"{path.name}\0sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        for path in sorted((ran / "data/prepared/hills").iterdir())
    ]
    assert f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}" in page.words


def test_values_that_a_set_overrides_are_marked(text: str) -> None:
    assert re.findall(r'<dt>(\w+)</dt><dd class="override">(\w+)</dd>', text) == [("steps", "4")], (
        "those of the set dots"
    )


def test_nothing_volatile_is_in_the_page(ran: Path, text: str) -> None:
    plain = re.sub(r"data:image/\w+;base64,[\w+/=]+|sha256:[0-9a-f]{64}", "", text)
    assert not re.search(r"\d\d:\d\d|\b20\d\d\b", plain), "a date or a time"
    for place in (str(ran), str(Path.home()), "/tmp"):
        assert place not in plain or len(place) < 3


# Parts of it


def facts_of(stops: Sequence[int], alphas: Sequence[Sequence[float]], count: int) -> dict[str, Any]:
    between = stops[1]
    return {
        "keyframes": [{"frame": stop, "text": name} for stop, name in zip(stops, "ABC", strict=False)],
        "positions": [number / between for number in range(count)],
        "alphas": dict.fromkeys(("morph", "without adapters", "cross-fade"), alphas),
    }


def test_the_last_segment_of_a_loop_leads_to_the_first_keyframe() -> None:
    facts = facts_of([0, 2], [[0, 0.3, 1], [0, 0.6, 1]], 4)
    assert describe_frame(1, facts) == ("position 0.5", "A → B")
    assert describe_frame(2, facts) == ("position 1, keyframe", "B")
    assert describe_frame(3, facts) == ("position 1.5", "B → A")


def test_each_variant_has_its_own_alphas() -> None:
    facts = facts_of([0, 2], [[0, 0.3, 1], [0, 0.6, 1]], 4)
    facts["alphas"]["cross-fade"] = [[0, 0.5, 1], [0, 0.5, 1]]
    found = [[alpha_of(number, facts, variant) for number in range(4)] for variant in (MORPH, CROSS_FADE)]
    assert found == [["", "alpha 0.3", "", "alpha 0.6"], ["", "alpha 0.5", "", "alpha 0.5"]]


def test_a_long_morph_is_thinned_out_but_for_its_keyframes() -> None:
    count, stop = 2 * MAX_FRAMES + 2, 33
    alphas = [np.linspace(0, 1, stop + 1).tolist(), np.linspace(0, 1, count - stop).tolist()]
    facts = facts_of([0, stop, count - 1], alphas, count)
    views = frame_views(facts, lambda number, variant: f"{variant.folder}/{number}")
    numbers = [frame.number for frame in views]
    assert views[1].pictures == tuple(f"{folder}/{numbers[1]}" for folder in FOLDERS.values())
    assert len(numbers) < MAX_FRAMES and numbers[0] == 0 and stop in numbers and numbers[-1] == count - 1
    assert numbers == sorted(numbers)


def test_every_template_is_declared_and_packed() -> None:
    files = {path.relative_to(ROOT / "pipeline/report") for path in (ROOT / "pipeline/report").rglob("*.*")}
    templates = {path for path in files if path.suffix in (".html", ".css", ".js")}
    assert {path.name for path in templates} == {"page.html", "parts.html", "page.css", "page.js"}
    dvc = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    deps = {Path(dep) for dep in dvc["stages"]["report"]["deps"]}
    assert all(deps & set((Path("pipeline/report") / path).parents) for path in templates)
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    assert all(any(path.match(pattern) for pattern in packed["pipeline.report"]) for path in templates)


def test_the_script_finds_what_it_looks_for(text: str) -> None:
    script = (ROOT / "pipeline/report/templates/page.js").read_text(encoding="utf-8")
    classes = {name for value in re.findall(r'class="([^"]+)"', text) for name in value.split()}
    wanted = set(re.findall(r'querySelector(?:All)?\("\.(\w+)"', script))
    assert wanted == {"viewer", "stack", "position", "controls", "clip"} and wanted <= classes
