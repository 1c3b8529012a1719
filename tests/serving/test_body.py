"""A bound on bodies and on how many are at work."""

import asyncio
import json
from typing import Any

import pytest

from pipeline.serving import body
from pipeline.serving.body import BoundedBodies

POST: dict[str, Any] = {"type": "http", "method": "POST", "headers": []}


class Connection:
    """Sends messages to an application, and keeps what it answers."""

    def __init__(self, *parts: bytes) -> None:
        last = len(parts) - 1
        self.messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": part, "more_body": number < last} for number, part in enumerate(parts)
        ]
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        return self.messages.pop(0) if self.messages else {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent[1:]).decode()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def ask(connection: Connection, headers: list[tuple[bytes, bytes]] | None = None) -> Connection:
    bounded = BoundedBodies(echo, most_bytes=10, most_requests=2)
    asyncio.run(bounded({**POST, "headers": headers or []}, connection.receive, connection.send))
    assert bounded._count == 0
    return connection


def test_a_body_within_the_bound_arrives_whole() -> None:
    found = ask(Connection(b"01234", b"", b"56789"))
    assert (found.status, found.text) == (200, "0123456789")


def test_a_longer_one_is_refused_by_its_length_or_when_it_has_sent_too_much() -> None:
    declared = ask(Connection(b"0"), [(b"content-length", b"11")])
    assert declared.status == 413 and len(declared.messages) == 1  # nothing of it was read
    sent = ask(Connection(b"01234", b"567890", b"more"))
    assert sent.status == 413 and len(sent.messages) == 1
    assert json.loads(sent.text)["message"].startswith("The request is longer than")


def test_one_too_many_is_told_to_come_back() -> None:
    async def many() -> list[int]:
        go = asyncio.Event()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            await go.wait()
            await echo(scope, receive, send)

        bounded = BoundedBodies(slow, most_bytes=10, most_requests=2)
        connections = [Connection(b"a") for _ in range(3)]
        tasks = [asyncio.create_task(bounded(POST, one.receive, one.send)) for one in connections]
        await asyncio.wait_for(tasks[2], 30)
        go.set()
        await asyncio.gather(*tasks)
        return [one.status for one in connections]

    assert asyncio.run(many()) == [200, 200, 503]


def test_one_that_breaks_off_reaches_nobody() -> None:
    found = Connection(b"012", b"34")
    found.messages.pop()
    assert ask(found).sent == []


def test_one_whose_body_stops_coming_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "SILENCE_SECONDS", 0.1)

    class Silent(Connection):
        async def receive(self) -> Any:
            if not self.messages:
                await asyncio.sleep(60)
            return await super().receive()

    silent = Silent(b"0", b"1")
    del silent.messages[1]
    assert ask(silent).status == 408 and "Nothing more of the request came for 0.1 s" in silent.text
