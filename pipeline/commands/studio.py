"""`morphline studio`: the morphs in the browser, from a server on this machine."""

import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress

import uvicorn
from filelock import FileLock, Timeout

from pipeline.commands.ui import require_free
from pipeline.errors import Problem, UserError
from pipeline.params import load_params
from pipeline.studio.project import STUDIO, Project
from pipeline.studio.server import Studio, create_app
from pipeline.tracking import STUDIO_ADDRESS, run_page

HIDDEN = ("0.0.0.0", "::")
"""Hosts that stand for all of this machine's addresses."""


def run(port: int, host: str, open_browser: bool, names: Sequence[str] = ()) -> int:
    """Serve the studio until Ctrl-C or SIGTERM; a job that runs then is interrupted, and goes on at the next start.

    names: of the hosts at which browsers find it besides this machine's own, such as a proxy's.

    Raises:
        UserError: where params.yaml is wrong, the port is taken, or another studio serves this project.
    """
    load_params()
    require_free(port, host)
    STUDIO.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(STUDIO / "studio.lock", timeout=0):
            return _serve(port, host, open_browser, names)
    except Timeout:
        found = "another `morphline studio` serves this project already"
        raise UserError(Problem("the studio", found, "Use that one, or stop it.")) from None


def _serve(port: int, host: str, open_browser: bool, names: Sequence[str]) -> int:
    token = secrets.token_urlsafe(32)
    morphline = [sys.executable, "-m", "pipeline"]
    own = () if host in HIDDEN else (host,)
    shown = "127.0.0.1" if host in HIDDEN else f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}"
    project = Project(
        load_params, morphline, lambda stage: run_page(load_params().tracking, stage), {STUDIO_ADDRESS: address}
    )
    studio = Studio(project)
    app = create_app(studio, token, tuple(name.lower() for name in (*own, *names)))
    config = uvicorn.Config(
        app, host=host, port=port, log_level="error", access_log=False, server_header=False, ws="none",
        timeout_graceful_shutdown=3,
    )  # fmt: skip
    server = _Server(config, studio.stopping.set, f"{address}/?token={token}", open_browser)
    with suppress(KeyboardInterrupt):
        server.run()
    return 0


class _Server(uvicorn.Server):
    """A server that says where it is once it is there, and ends the streams before it waits for their end."""

    def __init__(
        self, config: uvicorn.Config, end_streams: Callable[[], None], address: str, open_browser: bool
    ) -> None:
        super().__init__(config)
        self.end_streams, self.address, self.open_browser = end_streams, address, open_browser

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f"Open {self.address}", flush=True)
            if self.open_browser:
                threading.Thread(target=webbrowser.open, args=(self.address,), daemon=True).start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.end_streams()
        await super().shutdown(sockets)
