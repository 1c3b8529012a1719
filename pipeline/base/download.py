"""One question to the Hub, in a process that ends itself when the answer stands still.

python -m pipeline.base.download < question.json

The question, a JSON object on standard input: source, revision, patterns (of the files to download; null: only list
their names), patience (seconds) and slowest (bytes a second). The answer, on standard output: {"found": the folder or
the names}, or {"failed": why, in one line}.
"""

import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock
from huggingface_hub import HfApi, constants, set_client_factory, snapshot_download
from huggingface_hub.utils import tqdm
from huggingface_hub.utils._http import default_client_factory

LONGEST_ANSWER, MOST_ANSWERS = 32 * 1024 * 1024, 10_000

_OUT = sys.stdout


class Watch:
    """Patience that time uses up and what comes in restores.

    A byte is worth 1 / slowest seconds, and the first of an answer all the patience there is: so a download may be as
    slow as `slowest` for ever, and questions with small answers take as long as the way to the server takes. No base
    needs more than MOST_ANSWERS; a list of files may have no end.
    """

    def __init__(self, patience: float, slowest: float) -> None:
        self._most, self._slowest = patience, slowest
        self._until = time.monotonic() + patience
        self._answers = 0
        self._asked: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()

    def sent(self, to: socket.socket) -> None:
        """Something was sent: what comes next is an answer."""
        with self._lock:
            self._asked.add(to)

    def received(self, count: float, of: socket.socket | None = None) -> None:
        """So many bytes came in, at a socket or (None) otherwise."""
        if not count > 0:
            return
        with self._lock:
            most = time.monotonic() + self._most
            first = of is not None and of in self._asked and self._answers < MOST_ANSWERS
            self._until = most if first else min(self._until + count / self._slowest, most)
            self._answers += first
            if of is not None:
                self._asked.discard(of)

    def spent(self) -> bool:
        """Whether nothing is left of the patience."""
        return time.monotonic() > self._until


def watch_sockets(watch: Watch) -> None:
    """Tell the watch of all that Python's sockets send and receive in this process, whichever client they serve."""

    def watched(kind: type[socket.socket], name: str) -> None:
        plain = getattr(kind, name)

        def receive(this: socket.socket, *arguments: Any, **keywords: Any) -> Any:
            got = plain(this, *arguments, **keywords)
            watch.received(got if isinstance(got, int) else len(got), this)
            return got

        def send(this: socket.socket, *arguments: Any, **keywords: Any) -> Any:
            watch.sent(this)
            return plain(this, *arguments, **keywords)

        setattr(kind, name, receive if name.startswith("recv") else send)

    for kind in (ssl.SSLSocket, socket.socket):
        for name in ("recv", "recv_into", "send", "sendall"):
            watched(kind, name)


def _answer(answer: dict[str, Any]) -> NoReturn:
    """Write the answer and end, whatever threads are still waiting."""
    _OUT.write(json.dumps(answer))
    _OUT.flush()
    os._exit(0)


def _guard(watch: Watch, patience: float, slowest: float, parent: int) -> None:
    while not watch.spent():
        time.sleep(0.1)
        if os.getppid() != parent:  # it was killed
            os._exit(1)
    _answer({"failed": f"less than {slowest:,.0f} bytes a second came from it for {patience:g} s"})


def bound_answers() -> None:
    """Let none of the client's answers fill the memory; files go to the disk as they come."""

    def read(response: Any) -> None:
        if response.is_success and "/api/" not in response.request.url.path:
            return  # a file
        content = bytearray()
        for part in response.iter_bytes():
            content += part
            if len(content) > LONGEST_ANSWER:
                raise OSError("its answer has no end")
        response._content = bytes(content)

    def client() -> Any:
        made = default_client_factory()
        made.event_hooks["response"].append(read)
        return made

    set_client_factory(client)


def _find(question: dict[str, Any], watch: Watch) -> str | list[str]:
    """The folder with the files that match, or the names of all files."""
    if question["patterns"] is None:
        return HfApi().list_repo_files(question["source"], revision=question["revision"])

    class Bar(tqdm):  # type: ignore[misc]
        """A progress bar that tells of what the library in Rust receives, which uses no sockets of Python's."""

        def update(self, n: float | None = 1) -> bool | None:
            watch.received(n or 0)
            return super().update(n)

    return snapshot_download(
        question["source"], revision=question["revision"], allow_patterns=question["patterns"], tqdm_class=Bar
    )


def run() -> NoReturn:
    """Answer the question."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent says what there is to say
    question = json.load(sys.stdin)
    sys.stdout = sys.stderr  # no library may write into the answer
    patience, slowest = question["patience"], question["slowest"]
    try:
        # The client waits for another download of the same file, without a sign that it goes on.
        locks = Path(constants.HF_HUB_CACHE, ".locks")
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"morphline--{question['source'].replace('/', '--')}.lock"):
            watch = Watch(patience, slowest)
            watch_sockets(watch)
            bound_answers()
            threading.Thread(target=_guard, args=(watch, patience, slowest, parent), daemon=True).start()
            found = _find(question, watch)
    except Exception as error:  # the client, its HTTP library and the disk have kinds of their own
        _answer({"failed": (str(error).strip().splitlines() or [type(error).__name__])[0]})
    _answer({"found": found})


if __name__ == "__main__":
    run()
