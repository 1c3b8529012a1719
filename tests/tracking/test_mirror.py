"""A mirror that ends at any of its calls, and begins again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline.tracking.mirror import Mirror
from pipeline.tracking.store import open_store
from tests.tracking.conftest import Book, full_stage, section
from tests.tracking.server import check_equal


class Killed(BaseException):
    """As if the process had ended there."""


class KilledAt:
    """MLflow's client, until the call of that number: then nothing, or the call without its answer, and the end."""

    def __init__(self, client: MlflowClient, number: int, heard: bool) -> None:
        self.client, self.left, self.heard = client, number, heard

    def __getattr__(self, name: str) -> Callable[..., Any]:
        plain = getattr(self.client, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                if self.heard:
                    plain(*arguments, **keywords)
                raise Killed
            return plain(*arguments, **keywords)

        return call


@pytest.mark.parametrize("heard", [False, True], ids=["before the call", "before its answer"])
def test_a_kill_between_any_two_calls_leaves_nothing_out_and_nothing_twice(
    migrated: Path, tmp_path: Path, heard: bool
) -> None:
    """Each call in turn is the last of a process; the next one brings the rest."""
    here = full_stage(migrated)
    empty = (migrated / "mlflow.db").read_bytes()
    kills = 0
    while True:
        there = tmp_path / f"server{kills}"
        there.mkdir()
        uri = f"sqlite:///{there / 'mlflow.db'}"
        (there / "mlflow.db").write_bytes(empty)
        forget_runs(there / "mlflow.db")
        try:
            bring_all(uri, KilledAt(MlflowClient(uri), kills, heard))
        except Killed:
            bring_all(uri, MlflowClient(uri))
            check_equal(here, Book(section(uri), MlflowClient(uri)))
            kills += 1
            continue
        break
    assert kills > 25, "so many calls bring a run"


def forget_runs(database: Path) -> None:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(database)) as connection, connection:
        for table in ("tags", "params", "metrics", "latest_metrics", "inputs", "logged_models", "logged_model_tags",
                      "logged_model_metrics", "runs"):  # fmt: skip
            connection.execute(f"DELETE FROM {table}")


def bring_all(uri: str, client: Any) -> None:
    """As `sync` does, to a database in the place of a server."""
    store = open_store(section(None))
    mirror = Mirror(store, uri)
    mirror.open("morphline")
    mirror.client = client
    for run in sorted(
        store.search("tags.`morphline.state` != ''"), key=lambda run: "mlflow.parentRunId" in run.data.tags
    ):
        mirror.bring(run.info.run_id)
