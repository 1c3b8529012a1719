"""The scripts that run in CI, with a Git remote and a GitHub of their own."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.ci import report as ci_report
from tests.declarations import ROOT

COMMENT = ROOT / ".ci/comment.py"


def test_the_comment_is_found_by_the_mark_of_the_report() -> None:
    assert f'MARK = "{ci_report.MARK}"' in COMMENT.read_text(encoding="utf-8")


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class GitHub(ThreadingHTTPServer):
    """The three calls that are needed of GitHub, two comments a page."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.comments: list[dict[str, Any]] = []
        self.number = 12

    def say(self, login: str, body: str) -> None:
        self.comments.append({"id": 100 + len(self.comments), "user": {"login": login}, "body": body})


class Answers(BaseHTTPRequestHandler):
    server: GitHub

    def answer(self, content: Any, link: str = "") -> None:
        self.send_response(200)
        self.send_header("Link", link)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def body(self) -> str:
        assert self.headers["Authorization"] == "Bearer secret"
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"]

    def do_GET(self) -> None:
        assert self.path.startswith(f"/repos/a/b/issues/{self.server.number}/comments?")
        start = int(self.path.partition("&from=")[2] or 0)
        following = f"{self.server.address}{self.path.partition('&from=')[0]}&from={start + 2}"
        more = f'<{following}>; rel="next"' if len(self.server.comments) > start + 2 else ""
        self.answer(self.server.comments[start : start + 2], more)

    def do_POST(self) -> None:
        assert self.path == f"/repos/a/b/issues/{self.server.number}/comments"
        self.server.say("github-actions[bot]", self.body())
        self.answer({})

    def do_PATCH(self) -> None:
        number = int(self.path.removeprefix("/repos/a/b/issues/comments/"))
        next(comment for comment in self.server.comments if comment["id"] == number)["body"] = self.body()
        self.answer({})

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def github(monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHub]:
    server = GitHub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    values = {"GH_TOKEN": "secret", "GITHUB_REPOSITORY": "a/b", "GITHUB_API_URL": server.address}
    for name, value in {**values, "GITHUB_SERVER_URL": "https://example.org"}.items():
        monkeypatch.setenv(name, value)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose remote is a folder."""
    git("init", "-q", "--bare", str(tmp_path / "remote"))
    git("init", "-q", str(tmp_path / "checkout"))
    monkeypatch.chdir(tmp_path / "checkout")
    git("remote", "add", "origin", str(tmp_path / "remote"))
    return tmp_path / "checkout"


def write_report(text: str, **pictures: str) -> None:
    Path("report/pictures").mkdir(parents=True, exist_ok=True)
    Path("report/report.md").write_text(text, encoding="utf-8")
    for name, content in pictures.items():
        Path("report/pictures", f"{name}.webp").write_text(content)


def comment(run: str, number: str = "12") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GITHUB_RUN_ID": run}
    command = [sys.executable, str(COMMENT), "report", number]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def published() -> dict[str, str]:
    git("fetch", "-q", "origin", "+ci-pictures:ci-pictures")
    names = git("ls-tree", "-r", "--name-only", "ci-pictures").splitlines()
    return {name: git("show", f"ci-pictures:{name}") for name in names}


def test_one_comment_is_posted_and_then_updated_whoever_speaks_between(github: GitHub, checkout: Path) -> None:
    github.say("eve", f"{ci_report.MARK}\nnot the bot")
    write_report(f"{ci_report.MARK}\n\nfirst ü")
    assert comment("7").returncode == 0
    assert "first ü" in github.comments[1]["body"]
    for login, said in (("bob", "nice"), ("github-actions[bot]", "coverage 97 %"), ("bob", "really")):
        github.say(login, said)
    write_report(f"{ci_report.MARK}\n\nsecond")
    assert comment("8").returncode == 0
    log = "[This run, with its log and files](https://example.org/a/b/actions/runs/8)"
    assert [item["body"] for item in github.comments] == [
        f"{ci_report.MARK}\nnot the bot",
        f"{ci_report.MARK}\n\nsecond\n\n{log}\n",
        "nice",
        "coverage 97 %",
        "really",
    ]


def test_a_run_that_failed_is_told_in_the_same_comment(github: GitHub, checkout: Path) -> None:
    write_report(f"{ci_report.MARK}\n\nall is well")
    comment("7")
    Path("report/report.md").unlink()
    assert comment("8").returncode == 0
    assert len(github.comments) == 1 and "did not succeed" in github.comments[0]["body"]


def test_pictures_of_a_pull_request_are_replaced_and_those_of_others_stay(github: GitHub, checkout: Path) -> None:
    write_report(ci_report.MARK, now="a7")
    assert comment("7").returncode == 0
    assert published() == {"12/7/now.webp": "a7"}
    write_report(ci_report.MARK, now="a8", before="b8")
    assert comment("8").returncode == 0
    github.number = 13
    github.comments.clear()
    assert comment("9", "13").returncode == 0
    assert published() == {
        "12/8/before.webp": "b8",
        "12/8/now.webp": "a8",
        "13/9/before.webp": "b8",
        "13/9/now.webp": "a8",
    }
    assert git("rev-list", "--count", "ci-pictures") == "1"


def test_the_token_goes_to_github_alone_whatever_an_answer_links_to(
    github: GitHub, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]")

    write_report(ci_report.MARK)
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        port = other.server_address[1]
        for address in (f"http://127.0.0.1:{port}/", f"{github.address}@127.0.0.1:{port}/", f"{github.address}0/"):
            link = f'<{address}x>; rel="next"'
            monkeypatch.setattr(Answers, "do_GET", lambda self, link=link: self.answer([], link))
            done = comment("7")
            assert done.returncode == 1 and "the token is for" in done.stderr
        other.shutdown()
    assert not asked and not github.comments


def test_what_a_change_links_to_is_not_published(github: GitHub, checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    write_report(ci_report.MARK)
    Path("report/pictures/link.webp").symlink_to(tmp_path / "secret")
    assert comment("7").returncode == 0 and not published()
    Path("report/report.md").unlink()
    Path("report/report.md").symlink_to(tmp_path / "secret")
    assert comment("8").returncode == 0
    assert "secret" not in github.comments[0]["body"] and "did not succeed" in github.comments[0]["body"]


def test_git_logs_in_at_github_alone_and_no_argument_shows_the_token(
    github: GitHub, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `git` before the real one on PATH writes down its arguments and the login that it would use."""
    real, log = shutil.which("git"), tmp_path / "log"
    script = tmp_path / "bin/git"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\necho "arguments $*" >> {log}\n'
        f"for a in https://example.org/a/b https://elsewhere.org/a/b; do\n"
        f'  echo "login $a $({real} config --get-urlmatch http.extraheader $a)" >> {log}\ndone\nexec {real} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    write_report(ci_report.MARK, now="a7")
    assert comment("7").returncode == 0
    lines = log.read_text().splitlines()
    login = base64.b64encode(b"x-access-token:secret").decode()
    assert f"login https://example.org/a/b Authorization: basic {login}" in lines
    assert not [line for line in lines if line.startswith("login https://elsewhere") and "basic" in line]
    pushes = [line for line in lines if line.startswith("arguments push")]
    assert pushes and not [
        line for line in lines if line.startswith("arguments") and (login in line or "secret" in line)
    ]


def test_a_push_that_another_run_overtook_is_tried_again(github: GitHub, checkout: Path) -> None:
    write_report(ci_report.MARK, now="a7")
    hook = checkout.parent / "remote/hooks/update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntest -e refused || { touch refused; exit 1; }\n")
    hook.chmod(0o755)
    done = comment("7")
    assert done.returncode == 0 and "attempt 1" in done.stderr and "attempt 2" not in done.stderr
    assert published() == {"12/7/now.webp": "a7"}
