"""Pictures that are dropped: taken as `prepare` takes them, under names of ours, or refused with the reason."""

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pipeline.studio import uploads
from pipeline.studio.uploads import Draft
from tests.project import contents, with_values

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HTML = b"<!doctype html><script>alert(1)</script>"


def picture(seed: int = 0, size: tuple[int, int] = (90, 70), kind: str = "PNG", **options: Any) -> bytes:
    colours = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize(size).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def draft(browser: TestClient) -> str:
    return str(browser.post("/api/drafts").json()["draft"])


def put(browser: TestClient, draft: str, content: bytes, name: str) -> Any:
    return browser.put(f"/api/drafts/{draft}/pictures", params={"name": name}, content=content)


@pytest.mark.parametrize(("called", "name"), [
    ("Großer See (2).png", "grosser-see-2.png"), ("../../etc/passwd", "passwd.png"), ("a\\b\\c.gif", "c.png"),
    ("山.png", "picture.png"), ("", "picture.png"), ("test.png", "tst.png"), (".hidden", "hidden.png"),
    ("x" * 900, "x" * 60 + ".png"),
    ("\x00\n<b>.png", "b.png"),
])  # fmt: skip
def test_a_picture_gets_a_name_of_ours_and_a_small_copy(
    browser: TestClient, draft: str, called: str, name: str
) -> None:
    content = picture()
    answer = put(browser, draft, content, called)
    assert answer.status_code == 201 and answer.json()["name"] == name
    assert (answer.json()["width"], answer.json()["height"]) == (90, 70)
    assert Draft(draft).picture(name).read_bytes() == content
    small = browser.get(f"/media/drafts/{draft}/{name}")
    assert small.headers["content-type"] == "image/webp"
    with Image.open(io.BytesIO(small.content)) as image:
        assert image.size == (90, 70)


def test_two_pictures_of_one_name_are_two(browser: TestClient, draft: str) -> None:
    names = [put(browser, draft, picture(seed, kind=kind), "a.png").json()["name"]
             for seed, kind in enumerate(("PNG", "JPEG", "WEBP"))]  # fmt: skip
    assert names == ["a.png", "a-2.jpg", "a-3.webp"]
    assert set(browser.get(f"/api/drafts/{draft}").json()["uploads"]) == set(names)
    assert browser.delete(f"/api/drafts/{draft}/pictures/a-2.jpg").status_code == 204
    assert browser.delete(f"/api/drafts/{draft}/pictures/a-2.jpg").status_code == 404
    assert set(Draft(draft).uploads()) == {"a.png", "a-3.webp"}


@pytest.mark.parametrize(("content", "found"), [
    (SVG, "not a picture of a known format"), (HTML, "not a picture of a known format"), (b"", "the file is empty"),
    (picture()[:200], "corrupt or truncated"), (b"\x89PNG\r\n\x1a\n" + SVG, "corrupt"),
    (b"GIF89a" + HTML, "corrupt"), (bytes(5000), "not a picture of a known format"),
])  # fmt: skip
def test_what_is_no_picture_is_refused_and_gone(browser: TestClient, draft: str, content: bytes, found: str) -> None:
    for name in ("a.png", "a.svg", "a.html"):
        answer = put(browser, draft, content, name)
        assert answer.status_code == 422 and answer.json()["problems"][0]["where"] == name
        assert found in answer.json()["problems"][0]["found"]
    assert contents(Draft(draft).folder) == {}


def test_the_limit_of_megapixels_is_that_of_the_params(browser: TestClient, draft: str) -> None:
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(with_values(text, {"prepare.max_megapixels": 0.005}), encoding="utf-8")
    (problem,) = put(browser, draft, picture(), "a.png").json()["problems"]
    assert "more than the 0.005 allowed" in problem["found"] and "prepare.max_megapixels" in problem["fix"]


def test_ten_uploads_at_once_are_decoded_one_by_one(
    browser: TestClient, draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, most, answers = [0], [0], []
    load = uploads.load_picture

    def watched(*arguments: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        try:
            return load(*arguments)
        finally:
            inside[0] -= 1

    monkeypatch.setattr(uploads, "load_picture", watched)
    threads = [
        threading.Thread(target=lambda seed=seed: answers.append(put(browser, draft, picture(seed), "a.png")))
        for seed in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [201] * 10 and most == [1]
    assert len(Draft(draft).uploads()) == 10
    assert {path.read_bytes() for path in (Draft(draft).folder / "pictures").iterdir()} == {
        picture(n) for n in range(10)
    }


def test_a_draft_keeps_what_was_written(browser: TestClient, draft: str) -> None:
    form = {
        "title": "A lake",
        "pictures": [{"name": "a.png", "caption": "</script><b>", "focus": [0.25, 1]}],
        "frames": "5",
    }
    assert browser.put(f"/api/drafts/{draft}", json=form).status_code == 204
    kept = browser.get(f"/api/drafts/{draft}").json()["form"]
    assert {name: kept[name] for name in form} == form
    page = browser.get(f"/new/{draft}")
    assert page.status_code == 200 and "</script><b>" not in page.text
    for wrong in ({"title": 5}, {"nosuch": 1}, {"pictures": [{"name": "a", "focus": [2, 0]}]}, [], "x"):
        assert browser.put(f"/api/drafts/{draft}", json=wrong).status_code == 422
