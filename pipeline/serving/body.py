"""A bound on what a server takes in, in front of an application that reads a request's whole body before it looks."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


SILENCE_SECONDS = 30.0
"""How long a request that has begun may send nothing."""


class BoundedBodies:
    """An ASGI application whose requests have at most so many bytes, and of which so many are at work at once.

    A longer one is answered with 413, by its Content-Length or when it has sent too much, and one too many with 503;
    neither costs more memory than the bound. One whose body stops coming is answered with 408, and makes room.
    """

    def __init__(self, application: Application, most_bytes: int, most_requests: int) -> None:
        self._application, self._most_bytes, self._most_requests = application, most_bytes, most_requests
        self._count = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._application(scope, receive, send)
            return
        if _declared(scope) > self._most_bytes:
            await self._refuse_length(send)
            return
        if self._count >= self._most_requests:
            await _answer(send, 503, f"{self._most_requests} requests are waiting already. Ask again later.")
            return
        self._count += 1
        try:
            parts, size, more = list[bytes](), 0, True
            while more:
                try:
                    message = await asyncio.wait_for(receive(), SILENCE_SECONDS)
                except TimeoutError:
                    await _answer(
                        send, 408, f"Nothing more of the request came for {SILENCE_SECONDS:g} s. Send it again."
                    )
                    return
                if message["type"] != "http.request":  # the client is gone
                    return
                parts.append(message.get("body", b""))
                size, more = size + len(parts[-1]), message.get("more_body", False)
                if size > self._most_bytes:
                    await self._refuse_length(send)
                    return
            whole = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]
            parts.clear()

            async def replay() -> Message:
                return whole.pop() if whole else await receive()

            await self._application(scope, replay, send)
        finally:
            self._count -= 1

    async def _refuse_length(self, send: Send) -> None:
        most = f"{self._most_bytes / 2**20:g} MB"
        await _answer(send, 413, f"The request is longer than {most}. Send smaller or fewer pictures.")


def _declared(scope: Message) -> int:
    text = dict(scope["headers"]).get(b"content-length", b"0")
    return int(text) if text.isdigit() else 0


async def _answer(send: Send, status: int, sentence: str) -> None:
    """In the form of MLflow's own errors."""
    body = json.dumps(
        {"error_code": "BAD_REQUEST" if status in (408, 413) else "TEMPORARILY_UNAVAILABLE", "message": sentence}
    )
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})
