"""A Hub that is slow, silent, endless or down: downloads go on as long as anything worth the name comes."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.base import download, hub
from pipeline.base.checking import find_base_problems
from pipeline.errors import UserError
from pipeline.sections import BaseSection
from tests.hub import COMMIT

Send = Callable[[BaseHTTPRequestHandler, bytes], None]


def of_the_hub() -> BaseSection:
    return BaseSection(source="owner/name", revision=COMMIT, config=None, dtype="float32", clip_skip=0, adapters=())


def at_once(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.wfile.write(content)


def in_parts(size: int, pause: float) -> Send:
    def send(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        for start in range(0, len(content), size):
            time.sleep(pause)
            handler.wfile.write(content[start : start + size])

    return send


def at_20_bytes_a_second(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    in_parts(2, 0.1)(handler, content)


def silent(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.wfile.write(content[:1])
    time.sleep(30)


class Hub(ThreadingHTTPServer):
    """A folder as the Hub offers it. send: how the content of a file is sent; send_list: the list of files."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folder, self.send, self.send_list = folder, at_once, at_once
        self.address = f"http://127.0.0.1:{self.server_port}"

    def names(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def handle_error(self, *_: object) -> None:
        """They have hung up."""


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:  # noqa: N802
        self._head()

    def do_GET(self) -> None:  # noqa: N802
        content = self._head()
        if content is not None:
            (self.server.send_list if "/api/" in self.path else self.server.send)(self, content)

    def _head(self) -> bytes | None:
        place = self.path.partition("?")[0].split("/")
        if "/api/" in self.path:
            files = [(name, (self.server.folder / name).stat().st_size) for name in self.server.names()]
            rows = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in files]
            whole = {"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name, _ in files]}
            content = json.dumps(rows if "tree" in place else whole).encode()
        else:
            file = self.server.folder / "/".join(place[5:])
            if not file.is_file():
                self.send_error(404)
                return None
            content = file.read_bytes()
        self.send_response(200)
        if self.server.send_list is not endless or "/api/" not in self.path:
            self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{abs(hash(self.path)):040x}"')
        self.end_headers()
        return content

    def log_message(self, *_: object) -> None:
        """Nothing."""


def endless(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    for _ in range(4000):  # 4 GB
        handler.wfile.write(b" " * 1_000_000)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub of two files, 24 kB, and a client of an empty cache."""
    from huggingface_hub import constants

    folder = tmp_path / "offered"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet/weights.safetensors").write_bytes(os.urandom(24_000))
    with Hub(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("HF_HUB_CACHE", raising=False)
        monkeypatch.setattr(hub, "PATIENCE_SECONDS", 2.0)
        hub._require_answer.cache_clear()
        yield server
        server.shutdown()
    hub._require_answer.cache_clear()


def test_files_and_their_names(served: Hub) -> None:
    assert sorted(hub.list_files(of_the_hub())) == served.names()
    root = hub.fetch(of_the_hub(), ["unet/*"])
    assert (root / "unet/weights.safetensors").read_bytes() == (served.folder / "unet/weights.safetensors").read_bytes()
    assert not (root / "model_index.json").exists()


def test_a_slow_but_steady_download_outlasts_the_patience(served: Hub) -> None:
    served.send = in_parts(400, 0.05)  # 8 kB a second
    started = time.monotonic()
    root = hub.fetch(of_the_hub(), ["unet/*"])
    assert time.monotonic() - started > 1.5 * hub.PATIENCE_SECONDS
    assert (root / "unet/weights.safetensors").stat().st_size == 24_000


@pytest.mark.parametrize("send", [at_20_bytes_a_second, silent])
def test_one_that_answers_and_lets_the_download_drip_costs_seconds(served: Hub, send: Send) -> None:
    served.send = send
    started = time.monotonic()
    with pytest.raises(UserError, match=r"less than 1,000 bytes a second came from it for 2 s\). .*local folder"):
        hub.fetch(of_the_hub(), ["unet/*"])
    assert time.monotonic() - started < 60  # the client by itself: 20 minutes, and 66 s


def test_a_list_of_files_that_drips_or_has_no_end(served: Hub) -> None:
    served.send_list = at_20_bytes_a_second
    with pytest.raises(UserError, match="less than 1,000 bytes a second"):
        hub.list_files(of_the_hub())
    served.send_list = endless
    with pytest.raises(UserError, match="its answer has no end"):
        hub.list_files(of_the_hub())


def test_one_that_hangs_up_midway_is_a_problem_in_words(served: Hub) -> None:
    served.send = lambda handler, content: handler.connection.shutdown(socket.SHUT_RDWR)
    with pytest.raises(UserError, match="the Hub has no owner/name at 0123456789ab, or cannot be reached"):
        hub.fetch(of_the_hub(), ["unet/*"])


def test_a_download_ends_with_the_process_that_wants_it(served: Hub) -> None:
    served.send = in_parts(400, 0.5)
    asks = "from tests.base.test_hub import *; hub.fetch(of_the_hub(), ['unet/*'])"
    asking = subprocess.Popen([sys.executable, "-c", asks], start_new_session=True)
    assert within(
        30, lambda: len(of_session(asking.pid)) == 2 and bool(list(Path(os.environ["HF_HOME"]).rglob("*.lock")))
    )
    asking.kill()
    asking.wait()
    assert within(10, lambda: not of_session(asking.pid))


def of_session(number: int) -> list[str]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            found += [stat.parent.name] if int(session) == number and state != "Z" else []
    return found


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.1)
    return holds()


def test_patience_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(download.time, "monotonic", lambda: now)
    watch = download.Watch(60, 1000)
    with socket.socket() as one:
        now = 150
        watch.received(5000, one)  # unasked: five seconds more than the ten that are left
        now = 164
        assert not watch.spent()
        now = 166
        assert watch.spent()
        watch.sent(one)
        watch.received(1, one)  # the first of an answer: all of it
        now = 225
        assert not watch.spent()
        watch.received(1_000_000)  # never more than all
        now = 286
        assert watch.spent()
        monkeypatch.setattr(download, "MOST_ANSWERS", 1)
        watch.sent(one)
        watch.received(1, one)  # one answer too many
        assert watch.spent()


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: "], ids=["silent", "dripping"])
def test_a_hub_that_accepts_and_answers_nothing_costs_seconds(monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    """Its client asks a silent one again for minutes, without a word; one that drips keeps any read from waiting."""
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "HUB_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                connection.sendall(start)
                for _ in range(200):
                    time.sleep(0.1)
                    connection.sendall(b"x" if start else b"")

        threading.Thread(target=drip, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://ann:secret@127.0.0.1:{server.getsockname()[1]}")
        hub._require_answer.cache_clear()
        started = time.monotonic()
        (problem,) = find_base_problems(of_the_hub())
    assert time.monotonic() - started < 5
    assert "cannot be reached (http://ann:***@127.0.0.1" in problem.found and "no answer in 0.5 s" in problem.found
