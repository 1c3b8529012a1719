"""Who may ask the studio for anything: a browser that has the printed token, from the studio's own pages.

The token travels once, in the address that is printed; from then on a cookie has it, which no script can read and no
other site can make a browser send. Names of hosts that are not this machine's are refused, because another site's name
may be pointed at it (DNS rebinding); addresses in digits cannot be, and are taken.
"""

import ipaddress
import os
import secrets
import zlib
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import Problem

MOST_TEXT = 2**18
"""Bytes of the body of any request but an upload."""
UPLOAD = "/pictures"
"""How the paths end to which pictures are put."""
SAFE = ("GET", "HEAD")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


STRANGERS = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Morphline studio</title><h1>Morphline studio</h1><p>Not shown: {found}. {fix}</p></html>
"""
"""The only page that a browser without the token sees: it needs nothing else of the studio's."""


class TooLarge(HTTPException):
    """A body that turned out to be beyond what is allowed; most: bytes."""

    def __init__(self, most: int) -> None:
        super().__init__(413)
        self.most = most


class Guard:
    """The app behind the checks of token, host, origin and size; every answer gets the headers that browsers heed.

    most_upload: bytes of a picture. names: of hosts that browsers reach the studio by, besides this machine's own.
    """

    def __init__(self, app: ASGIApp, token: str, most_upload: int, names: tuple[str, ...] = ()) -> None:
        self.app, self.token, self.most_upload = app, token, most_upload
        self.names = {"localhost", *names}
        # Cookies do not tell ports apart: the studios of two projects need names of their own.
        self.cookie = f"morphline-{zlib.crc32(os.getcwd().encode()):08x}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on to the app."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer[name] = value
                if "cache-control" not in answer:
                    answer["cache-control"] = "no-store"
            await send(message)

        if response := self._refusal(scope, headers) or self._entrance(scope) or self._without_token(scope, headers):
            await response(scope, receive, send_guarded)
            return
        most = self.most_upload if scope["path"].endswith(UPLOAD) else MOST_TEXT
        if int(headers.get("content-length", "0")) > most:
            await too_large(most)(scope, receive, send_guarded)
            return
        read = 0

        async def receive_bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise TooLarge(most)
            return message

        await self.app(scope, receive_bounded, send_guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """Where the host or the origin is another's, or the request is malformed."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_known(hosts[0]):
            fix = "Use the address that `morphline studio` printed, or name the host with --host."
            return refused(421, Problem("Host", f"the studio is not at {hosts[:1] or 'no host'}", fix))
        origins = headers.getlist("origin")
        own = {f"{scheme}://{hosts[0]}" for scheme in ("http", "https")}
        if (origins and set(origins) - own) or (not origins and scope["method"] not in SAFE):
            return refused(403, Problem("Origin", f"found {origins or 'none'}", "Use the studio's own pages."))
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            return refused(400, Problem("Content-Length", "found no number", "Send the body's size in bytes."))
        return None

    def _is_known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _entrance(self, scope: Scope) -> Response | None:
        """Where the printed address is opened: the cookie, and the same address without the token."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if not given or scope["method"] != "GET" or not self._is_token(given[0]):
            return None
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        path = "/" + scope["path"].lstrip("/\\")  # two slashes would lead to another host
        response = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
        response.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
        return response

    def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        cookies: Mapping[str, str] = cookie_parser(headers.get("cookie", ""))
        if self._is_token(cookies.get(self.cookie, "")):
            return None
        fix = "Open the address that `morphline studio` printed when it was started, with the token at its end."
        problem = Problem("the studio", "this browser has not its token", fix)
        if "text/html" in headers.get("accept", ""):
            return HTMLResponse(STRANGERS.format(found=problem.found, fix=problem.fix), 403)
        return refused(403, problem)

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.token.encode())


def refused(status: int, *problems: Problem) -> Response:
    """An answer that says what is wrong: where, what was found, how to mend it."""
    told = [{"where": one.where, "found": one.found, "fix": one.fix, "text": str(one)} for one in problems]
    return JSONResponse({"problems": told}, status)


def too_large(most: int) -> Response:
    """The answer to a body of more than `most` bytes."""
    size = f"{most / 2**20:g} MB" if most >= 2**20 else f"{most / 2**10:g} kB"
    response = refused(413, Problem("the file", f"larger than {size}", "Shrink the picture, or save it as JPEG."))
    response.headers["connection"] = "close"  # the rest of the body is not read
    return response
