"""`mlflow models serve` on what `morphline package` writes: requests and answers over HTTP, without a network."""

import base64
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import av
import pytest

from pipeline.commands import package
from pipeline.errors import UserError
from tests.project import ROOT, contents, paint

START_SECONDS = 900.0
BODY = 32 * 2**20


@pytest.fixture(scope="module")
def model(ran: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command writes."""
    folder, before = tmp_path_factory.mktemp("served") / "hills", Path.cwd()
    os.chdir(ran)
    try:
        assert package.run("morph@hills", folder, force=False) == folder
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def address(model: Path, ran: Path) -> Iterator[str]:
    """Where it is served, from a folder that is no project."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    offline = {"HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    own = {"PATH": programs, "PYTHONPATH": str(ROOT), "MORPHLINE_BASE": str(ran / "bases/tiny"), **offline}
    log = (model.parent / "log.txt").open("wb")
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--timeout", "300"],
        cwd=model.parent, env={**os.environ, **own}, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + START_SECONDS
        while not _answers(f"http://127.0.0.1:{port}/ping"):
            assert server.poll() is None, (model.parent / "log.txt").read_text()[-2000:]
            assert time.monotonic() < end, "it does not start"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
        log.close()


def _answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def post(address: str, body: Any) -> tuple[int, dict[str, Any]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = Request(address, content, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=600) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def test_a_morph_comes_back_as_the_clip_of_the_pipeline(address: str, ran: Path) -> None:
    status, answer = post(address, {"inputs": {"pictures": ["red hill", "großer See", "blue"]}})
    assert status == 200, answer
    assert answer["predictions"]["count"] == 5
    assert base64.b64decode(answer["predictions"]["mp4"]) == (ran / "data/morphs/hills/morph.mp4").read_bytes()


PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
THERE = "http://127.0.0.1:5100/invocations"


def test_the_client_of_the_page_is_answered(address: str, tmp_path: Path) -> None:
    """As it stands there, but for the address; its pictures have no adapters."""
    (client,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert THERE in client and len(client.splitlines()) <= 10
    for number, name in enumerate(("beach.jpg", "pier.jpg")):
        paint(tmp_path / name, 40 + number, (120, 90))
    done = subprocess.run(
        [sys.executable, "-c", client.replace(THERE, address)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with av.open(str(tmp_path / "morph.mp4")) as clip:
        assert sum(1 for _ in clip.decode(video=0)) >= 31


def test_the_page_s_curl_is_answered(address: str) -> None:
    """With this model's keyframes in the place of the example's."""
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    right, wrong = re.findall(r"```\n(curl .*?)```", PAGE, flags=re.DOTALL)
    for command, expected in ((right, '"count": 16'), (wrong, "inputs: frames: found 5000. It should")):
        assert THERE in command
        here = command.replace(THERE, address).replace("dawn", "red hill").replace("night", "blue")
        words = shlex.split(here.replace("\\\n", " "))
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert expected in done.stdout
    assert "mp4" not in done.stdout and json.loads(done.stdout)["error_code"] == "INVALID_PARAMETER_VALUE"


def test_a_wrong_request_is_answered_with_400_and_a_sentence(address: str) -> None:
    picture = "A" * 50_000
    for inputs, sentence in (
        ({"pictures": ["blue"]}, "inputs: pictures: found ['blue']. It should have at least 2 items"),
        (
            {"captions": ["a"], "steps": 1000},
            "inputs: steps: found 1000. It should be less than or equal to 100, or be null.",
        ),
        ({"pictures": [picture, picture], "captions": ["a", "b"]}, "inputs: pictures.0: corrupt, or not a picture"),
        ([{"captions": []}, {"captions": []}], "inputs: found ["),
    ):
        status, answer = post(address, {"inputs": inputs})
        assert (status, set(answer)) == (400, {"error_code", "message"})
        assert answer["message"].startswith(sentence) and len(answer["message"]) < 400, answer
    for body in (b"{not JSON", b"3", {"captions": ["a"]}, {"instances": [1]}):
        status, answer = post(address, body)
        assert status == 400 and "Traceback" not in json.dumps(answer)


def test_a_body_beyond_the_bound_is_refused_before_it_is_read(address: str) -> None:
    with socket.create_connection(("127.0.0.1", int(address.split(":")[2].split("/")[0])), timeout=60) as plain:
        head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {BODY + 1}"
        plain.sendall(f"{head}\r\n\r\n".encode())
        answer = plain.recv(65536).decode()
        while "MB" not in answer and (more := plain.recv(65536)):  # head and body may come apart
            answer += more.decode()
    assert answer.startswith("HTTP/1.1 413 ") and "The request is longer than 32 MB" in answer


def test_a_model_holds_neither_code_nor_pickles_and_asks_for_the_installed_packages(model: Path) -> None:
    names = sorted(contents(model))
    assert "data/package/keyframes/red hill.png" in names and "data/package/adapters/hills/blue.safetensors" in names
    assert not [name for name in names if name.endswith((".pkl", ".py", ".bin"))]
    needed = (model / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch==") for line in needed) and not any("morphline" in line for line in needed)
    assert not any("pytest" in line for line in needed)


def test_a_folder_that_is_there_is_kept(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ran)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="it exists already. Use another folder, or --force"):
        package.run("train@dots", tmp_path / "mine", force=False)
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"
