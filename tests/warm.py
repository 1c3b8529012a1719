"""A `morphline` that starts at once, for tests that let DVC run many tiny stages.

DVC starts a new process for each stage, which would import torch, diffusers and MLflow for seconds to work for
milliseconds. Here one process imports them and forks for each command: same code, same arguments, same environment.

    python tests/warm.py SOCKET      # serves until its standard input is closed
"""

import gc
import importlib
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLIENT = """\
#!{python} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
told = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(server, [b"fds"], [0, 1, 2])
server.sendall(json.dumps(told).encode())
server.shutdown(socket.SHUT_WR)
sys.exit(int(server.recv(16) or 1))
"""


@contextmanager
def warm_morphline(folder: Path, hash_seed: int) -> Iterator[Path]:
    """A folder for PATH with a `morphline` in it. hash_seed: decides the order of sets, as chance does elsewhere."""
    folder.mkdir()
    path = folder / "socket"
    script = folder / "morphline"
    script.write_text(CLIENT.format(python=sys.executable, path=str(path)), encoding="utf-8")
    script.chmod(0o755)
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(Path(__file__).parent.parent)}
    server = subprocess.Popen(
        [sys.executable, __file__, str(path)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin and server.stdout
    try:
        assert server.stdout.readline() == "ready\n"
        yield folder
    finally:
        server.stdin.close()
        server.wait(30)


def serve(path: str) -> None:
    """Returns in each forked process, ready to run its command; the server itself ends with its standard input."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        _, streams, _, _ = socket.recv_fds(connection, 3, 3)
        with connection.makefile("rb") as message:
            told = json.load(message)
        child = os.fork()
        if not child:
            listener.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            os.chdir(told["folder"])
            os.environ.clear()
            os.environ.update(told["environment"])
            sys.argv = ["morphline", *told["arguments"]]
            return
        for stream in streams:
            os.close(stream)
        connection.sendall(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256).encode())
        connection.close()
    sys.exit()


if __name__ == "__main__":
    # What the stages import, and what MLflow imports only when it is first used.
    for stage in ("check", "prepare", "train", "sample", "morph", "evaluate", "styles", "edit", "report"):
        importlib.import_module(f"pipeline.stages.{stage}")
    for module in ("mlflow.diffusers", "mlflow.store.tracking.sqlalchemy_store"):
        importlib.import_module(module)
    from pipeline.cli import app

    gc.freeze()  # else each process on its end takes seconds to collect what it was forked with
    serve(sys.argv[1])
    app()
