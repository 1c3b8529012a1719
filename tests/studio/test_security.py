"""Nobody but a browser with the token, from the studio's own pages, gets anything; and never too much at once."""

import asyncio
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pipeline.studio.server import Studio, create_app
from pipeline.studio.uploads import MOST_BYTES, Draft
from tests.project import contents
from tests.studio.conftest import ORIGIN, TOKEN

HEX = "0123456789abcdef"
ROUTES = [
    ("GET", "/"), ("GET", "/new"), ("GET", f"/new/{HEX}"), ("GET", "/jobs"), ("GET", "/jobs/x"),
    ("GET", "/style"), ("GET", "/runs/morph/hills"), ("GET", f"/style/{HEX}"), ("POST", f"/api/drafts/{HEX}/style"),
    ("GET", "/morphs/hills"),
    ("GET", "/edits/hills"), ("GET", "/sets/hills"), ("GET", "/compare?a=hills&b=dots"), ("GET", "/static/studio.css"),
    ("GET", "/api/jobs"), ("GET", "/api/events"), ("GET", "/api/jobs/x"), ("GET", "/api/jobs/x/log"),
    ("GET", "/api/jobs/x/events"), ("GET", "/api/health"), ("GET", f"/api/drafts/{HEX}"), ("POST", "/api/drafts"),
    ("PUT", f"/api/drafts/{HEX}"), ("PUT", f"/api/drafts/{HEX}/pictures?name=a.png"), ("POST", "/api/jobs/x/cancel"),
    ("DELETE", f"/api/drafts/{HEX}/pictures/a.png"), ("POST", f"/api/drafts/{HEX}/check"),
    ("POST", "/api/jobs/x/retry"), ("POST", f"/api/drafts/{HEX}/morph"), ("GET", f"/media/drafts/{HEX}/a.png"),
    ("GET", "/media/morphs/hills/morph.webp"),
    ("GET", "/media/morphs/hills/still.webp"), ("GET", "/media/morphs/hills/strip.png"),
    ("GET", "/media/morphs/hills/frames.zip"), ("GET", "/media/morphs/hills/frames/0.webp"),
    ("GET", "/media/curves/hills.png"), ("GET", "/media/edits/hills/sheet.png"), ("GET", "/media/samples/hills.png"),
    ("GET", "/media/sets/hills/0.webp"), ("GET", "/media/adapters/hills/0.safetensors"),
    ("GET", "/media/previews/hills/000-0.500000.png"), ("GET", "/nothing"),
]  # fmt: skip


def test_the_list_names_every_route(studio: Studio) -> None:
    app = create_app(studio, TOKEN).app
    known = {(method, route.path) for route in app.routes for method in route.methods}  # type: ignore[attr-defined]
    asked = {
        (method, route.path)
        for method, path in ROUTES
        for route in app.routes  # type: ignore[attr-defined]
        if method in route.methods and route.path_regex.match(path.partition("?")[0])
    }
    assert known - asked == set()


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_the_right_token_there_is_nothing(stranger: TestClient, method: str, path: str) -> None:
    for headers in ({}, {"cookie": "morphline-00000000=wrong"}, {"authorization": f"Bearer {TOKEN}x"}):
        answer = stranger.request(method, path, headers={"origin": ORIGIN, **headers})
        assert answer.status_code == 403 and "this browser has not its token" in answer.text
    joint = "&" if "?" in path else "?"
    answer = stranger.request(method, f"{path}{joint}token=wrong", headers={"origin": ORIGIN}, follow_redirects=False)
    assert answer.status_code == 403 and "set-cookie" not in answer.headers
    assert contents(Path(), ".work/studio/jobs") == {"params.yaml": Path("params.yaml").read_bytes()}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_page_of_another_origin_gets_nothing(browser: TestClient, method: str, path: str) -> None:
    for origin in ("http://evil.example", "null", "https://127.0.0.1:8301", f"{ORIGIN}.evil.example"):
        answer = browser.request(method, path, headers={"origin": origin})
        assert answer.status_code == 403 and answer.json()["problems"][0]["where"] == "Origin"


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_name_of_another_host_gets_nothing(browser: TestClient, method: str, path: str) -> None:
    for host in ("evil.example", "evil.example:8300", "127.0.0.1.evil.example", "[", ""):
        headers = {"host": host, "origin": f"http://{host}"}
        assert browser.request(method, path, headers=headers).status_code == 421


def test_hosts_that_are_this_machine(stranger: TestClient) -> None:
    for host in ("localhost:8300", "127.0.0.1:9000", "[::1]:8300", "192.168.0.7:8300"):
        assert stranger.get("/", headers={"host": host}).status_code == 403  # for want of the token


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route[0] not in ("GET", "HEAD")])
def test_what_changes_anything_needs_an_origin(browser: TestClient, method: str, path: str) -> None:
    del browser.headers["origin"]
    assert browser.request(method, path).json()["problems"][0]["where"] == "Origin"


def test_the_printed_address_gives_the_cookie_and_goes_to_where_it_leads(stranger: TestClient) -> None:
    answer = stranger.get(f"/compare?a=hills&token={TOKEN}&b=dots", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/compare?a=hills&b=dots")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    answer = stranger.get(f"//evil.example/?token={TOKEN}", follow_redirects=False)
    assert not answer.headers.get("location", "/").startswith("//")


def test_pages_may_run_no_script_but_the_studios_files(browser: TestClient) -> None:
    for path in ("/", "/new", "/jobs", "/nothing"):
        answer = browser.get(path, headers={"accept": "text/html"})
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self'" in policy and "unsafe" not in policy and "default-src 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert " style=" not in answer.text and " onclick" not in answer.text and "http://" not in answer.text


TRAVERSALS = ("%2e%2e", "..%2f..%2fparams.yaml", "....//", "%00", "a%2fb", "C:%5Cx", "x" * 5000)


@pytest.mark.parametrize("name", TRAVERSALS)
def test_no_path_leads_out_of_its_folder(browser: TestClient, name: str) -> None:
    draft = browser.post("/api/drafts").json()["draft"]
    before = contents(Path(), ".work")
    for method, path in (
        ("GET", "/static/{}"), ("GET", "/media/drafts/{}/a.png"), ("GET", f"/media/drafts/{draft}/{{}}"),
        ("GET", "/media/morphs/{}/morph.webp"), ("GET", "/media/morphs/{}/frames.zip"), ("GET", "/media/curves/{}.png"),
        ("GET", "/media/morphs/hills/{}/0.webp"), ("GET", "/media/previews/{}/000-0.500000.png"),
        ("GET", "/media/previews/hills/{}"), ("GET", "/media/adapters/{}/0.safetensors"), ("GET", "/api/drafts/{}"),
        ("DELETE", f"/api/drafts/{draft}/pictures/{{}}"), ("PUT", "/api/drafts/{}/pictures"),
        ("GET", "/api/jobs/{}/log"),
        ("GET", "/morphs/{}"), ("GET", "/sets/{}"),
    ):  # fmt: skip
        answer = browser.request(method, path.format(name))
        assert answer.status_code in (404, 405, 422), (method, path, answer.status_code)
        assert "rank" not in answer.text  # a word of params.yaml
    assert contents(Path(), ".work") == before


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route[0] not in ("GET", "HEAD")])
def test_a_body_of_200_mb_is_refused_by_every_route(browser: TestClient, method: str, path: str) -> None:
    answer = browser.request(method, path, headers={"content-length": str(200 * 2**20)}, content=b"")
    assert answer.status_code == 413 and "Shrink the picture" in answer.text


def test_a_body_that_hides_its_size_is_refused_once_it_is_too_large(studio: Studio, browser: TestClient) -> None:
    draft = browser.post("/api/drafts").json()["draft"]
    tracemalloc.start()
    assert stream(studio, "PUT", f"/api/drafts/{draft}/pictures", 200 * 2**20) == 413
    assert stream(studio, "PUT", f"/api/drafts/{draft}", 200 * 2**20) == 413
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < MOST_BYTES / 8, "the body was held in memory"
    assert not list(Draft(draft).folder.rglob("*.*"))


def test_a_size_that_is_no_number(browser: TestClient) -> None:
    assert browser.post("/api/drafts", headers={"content-length": "x"}, content=b"").status_code == 400


def stream(studio: Studio, method: str, path: str, size: int) -> int:
    """The status of the answer to a body that is sent in pieces, as far as somebody reads them."""
    guard, answers, left = create_app(studio, TOKEN), [], [size]
    headers = {"host": "127.0.0.1:8300", "origin": ORIGIN, "cookie": f"{guard.cookie}={TOKEN}",
               "content-type": "application/json"}  # fmt: skip
    scope = {"type": "http", "method": method, "path": path, "query_string": b"name=a.png", "root_path": "",
             "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}  # fmt: skip

    async def receive() -> dict[str, Any]:
        left[0] -= 2**16
        return {"type": "http.request", "body": bytes(2**16), "more_body": left[0] > 0}

    async def send(message: Any) -> None:
        answers.append(message)

    asyncio.run(guard(scope, receive, send))
    assert left[0] > size / 2, "it was read to its end"
    return int(answers[0]["status"])
