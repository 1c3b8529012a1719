"""The servers of docs/teams.md, for real: PostgreSQL under `mlflow server`, artifacts on an S3 server."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from ruamel.yaml import YAML

from pipeline.tracking import sync
from tests.servers import Bucket, require, s3_bucket
from tests.tracking.conftest import ROOT, Book, open_book, section
from tests.tracking.server import Mlflow, check_equal, listed
from tests.tracking.test_real_server import WRITER

KEYS = ("alps", "hills", "woodcut", "dots", "sea", "dunes", "forest", "moor")
USER = "nobody"


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with s3_bucket() as bucket:
        yield bucket


@pytest.fixture
def postgres() -> Iterator[str]:
    """The URI of an empty database on a socket of its own. PostgreSQL refuses to run as root."""
    require("psycopg", programs=("initdb", "pg_ctl", "postgres"))
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    who: dict[str, Any] = {}
    if os.getuid() == 0:
        shutil.chown(folder, USER)
        who = {"user": USER, "extra_groups": []}

    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, **who)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    data = str(folder / "data")
    run("initdb", "--pgdata", data, "--username", "mlflow", "--auth", "trust", "--no-sync")
    options = f"-c listen_addresses='' -c fsync=off -c unix_socket_directories={folder}"
    run("pg_ctl", "--pgdata", data, "--options", options, "--log", str(folder / "log"), "--wait", "start")
    try:
        yield f"postgresql+psycopg://mlflow@/postgres?host={folder}"
    finally:
        run("pg_ctl", "--pgdata", data, "--mode", "immediate", "--wait", "stop")
        shutil.rmtree(folder)


@pytest.fixture
def team(postgres: str, bucket: Bucket, tmp_path: Path) -> Iterator[Mlflow]:
    (tmp_path / "server").mkdir()
    server = Mlflow(tmp_path / "server", postgres, f"s3://{bucket.name}/mlflow", bucket.environment)
    yield server
    server.kill()


COMPOSE = ROOT / "compose.yaml"


def test_the_containers_are_those_of_the_page_and_in_compose_s_form(tmp_path: Path) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, str(COMPOSE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    text = COMPOSE.read_text(encoding="utf-8")
    (tmp_path / "broken.yaml").write_text(text.replace("healthcheck:", "healthcheque:"))
    assert subprocess.run([*check, str(tmp_path / "broken.yaml")], capture_output=True).returncode == 1

    whole = YAML(typ="safe").load(text)
    services = whole["services"]
    assert set(services) == {"postgres", "s3", "mlflow"}
    assert set(services["mlflow"]["depends_on"]) == {"postgres", "s3"}
    for name, waited in services["mlflow"]["depends_on"].items():
        assert waited == {"condition": "service_healthy"} and services[name]["healthcheck"]["test"]
    used = {volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", ())}
    assert used == set(whole["volumes"])
    assert "ports" not in services["postgres"] and "ports" not in services["s3"], "only MLflow is reached from outside"
    needed = set(re.findall(r"\$\{(\w+):\?", text))
    assert needed == set(re.findall(r"\$\{(\w+)", text)), "no password has a default"
    page = (ROOT / "docs/teams.md").read_text(encoding="utf-8")
    assert all(f"{name}=" in page for name in needed)
    (pinned,) = re.findall(r'"(mlflow==[\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pinned in text and pinned in page
    assert "--artifacts-destination s3://" in text and "--backend-store-uri postgresql" in text


def rows(postgres: str, query: str) -> list[tuple[Any, ...]]:
    import psycopg

    with psycopg.connect(postgres.replace("+psycopg", "")) as connection:
        return connection.execute(query).fetchall()


def test_eight_trainings_log_at_once_while_the_server_is_killed_and_all_is_there_once(
    team: Mlflow, postgres: str, bucket: Bucket, migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # not a second, as other tests have it
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    team.start()
    eight = [subprocess.Popen([sys.executable, "-c", WRITER, team.uri, key], env=environment) for key in KEYS]
    there_before = 0
    for _ in range(2):
        until = time.monotonic() + 600
        while (count := rows(postgres, "SELECT COUNT(*) FROM metrics")[0][0]) <= there_before:
            assert time.monotonic() < until
            time.sleep(0.2)
        team.kill()
        there_before = count
        time.sleep(2)
        team.start()
    assert [process.wait(600) for process in eight] == [0] * 8
    params = section(team.uri)
    assert not [str(outcome) for outcome in sync(params) if outcome.failed]
    assert list(sync(params)) == [], "nothing is sent twice"

    here, there = open_book(migrated, "morphline"), Book(params, MlflowClient(team.uri))
    check_equal(here, there)
    for key in KEYS:
        assert there.history(there.only(f"train@{key}"), "loss") == [(step, step / 8) for step in range(200)]
    assert rows(postgres, "SELECT COUNT(*) FROM metrics WHERE key = 'loss'") == [(8 * 200,)]
    pictures = [
        name for run in there.runs() for name in listed(there.client, run.info.run_id) if name.startswith("images/")
    ]
    assert len(pictures) == 8 * 4 * 2, "each at four steps, and small"
    stored = [name for name in bucket.files() if "/images/" in name]
    assert len(stored) == len({name.rpartition("/")[2] for name in stored}) == len(pictures)
