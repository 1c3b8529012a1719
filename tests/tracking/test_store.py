"""The project's own database: where its artifacts go, also when it is copied, moved or old; and several processes."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from filelock import FileLock
from PIL import Image

from pipeline.errors import UserError
from pipeline.tracking import check_ran, track
from pipeline.tracking.store import lock, open_store
from tests.tracking.conftest import ROOT, open_book, section


def picture(colour: int) -> None:
    with track("sample@alps", section(None), {}) as tracker:
        tracker.picture("samples", Image.new("RGB", (8, 8), (colour, 0, 0)))


def pictures(project: Path) -> list[int]:
    return sorted(Image.open(path).getpixel((0, 0))[0] for path in project.rglob("mlartifacts/**/samples.png"))  # type: ignore[index]


def locations(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as connection:
        tables = (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
        )
        found = {row[0] for table, column in tables for row in connection.execute(f"SELECT {column} FROM {table}")}
    return {location for location in found if "mlruns" not in location}  # but that of MLflow's own default experiment


def test_a_copied_project_writes_into_its_new_place(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(10)
    copy = Path(shutil.copytree(migrated, tmp_path / "copy of it (1) ü"))
    monkeypatch.chdir(copy)
    picture(20)
    assert pictures(copy) == [10, 20] and pictures(migrated) == [10]
    book = open_book(copy, "morphline")
    assert [Image.open(book.artifacts(run) / "pictures/samples.png").size for run in book.runs() if "dvc.stage" in
            run.data.tags] == [(8, 8), (8, 8)]  # fmt: skip
    shutil.rmtree(migrated)
    moved = copy.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)
    picture(30)
    assert pictures(moved) == [10, 20, 30] and not copy.exists()
    assert all(location.startswith("mlartifacts/morphline") for location in locations(moved / "mlflow.db"))


def make_old(project: Path, place: Path) -> None:
    """As MLflow itself, and earlier versions of this project, write the locations."""
    with closing(sqlite3.connect(project / "mlflow.db")) as connection, connection:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            query = f"UPDATE {table} SET {column} = ? || '/' || {column} WHERE {column} LIKE 'mlartifacts/%'"
            connection.execute(query, (place.as_uri(),))


def test_an_older_database_is_mended(migrated: Path, tmp_path: Path) -> None:
    picture(10)
    make_old(migrated, migrated)
    assert all(location.startswith("file://") for location in locations(migrated / "mlflow.db"))
    picture(20)
    assert pictures(migrated) == [10, 20]
    assert all(location.startswith("mlartifacts/") for location in locations(migrated / "mlflow.db"))


def test_an_older_database_that_was_copied_keeps_what_is_only_in_the_old_place(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(10)
    make_old(migrated, migrated)
    (tmp_path / "copy").mkdir()
    for name in ("mlflow.db", "params.yaml"):
        shutil.copy(migrated / name, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    picture(20)
    assert pictures(tmp_path / "copy") == [20] and pictures(migrated) == [10]
    store = open_store(section(None))
    found = [
        store.place(run.info.artifact_uri) / "pictures/samples.png" for run in store.search("tags.`dvc.stage` != ''")
    ]
    assert [path.is_file() for path in found] == [True, True]


def test_an_experiment_that_keeps_its_artifacts_elsewhere_is_refused(migrated: Path) -> None:
    client = open_book(migrated, "elsewhere").client
    client.create_experiment("elsewhere", "s3://bucket/runs")
    with pytest.raises(UserError, match=r"keeps artifacts at s3://bucket/runs: choose another name in tracking\.exper"):
        open_store(section(None, experiment="elsewhere"))
    client.create_experiment("by hand", str(migrated / "somewhere"))
    open_store(section(None, experiment="by hand"))
    assert client.get_experiment_by_name("by hand").artifact_location == "mlartifacts/by-hand"


WRITER = """
import sys
from pipeline.sections import TrackingSection
from pipeline.tracking import track
section = TrackingSection(
    uri=None, experiment="morphline", required=True, pictures_every=None, system_every=0.05, register=False
)
with track(f"train@{sys.argv[1]}", section, {}) as tracker:
    for step in range(400):
        tracker.metric("loss", step, step)
        if step % 20 == 0:
            tracker._flush()
"""


def test_four_processes_write_at_once(migrated: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    names = ["alps", "hills", "woodcut", "dots"]
    four = [
        subprocess.Popen([sys.executable, "-c", WRITER, name], env=environment, stderr=subprocess.PIPE, text=True)
        for name in names
    ]
    assert [process.communicate()[1] for process in four] == [""] * 4
    book = open_book(migrated, "morphline")
    for name in names:
        run = book.only(f"train@{name}")
        assert run.info.status == "FINISHED"
        assert book.history(run, "loss") == [(step, step) for step in range(400)]
    assert [run.info.status for run in book.parents()] == ["FINISHED"], "one parent for all four"


class Disk(NamedTuple):
    mountpoint: str
    fstype: str


def test_a_network_file_system_is_reported_with_a_way_out(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disks(**keywords: Any) -> list[Disk]:
        return [Disk("/", "ext4"), Disk(str(project), "nfs4"), Disk(str(project / "data"), "ext4")]

    assert check_ran(section(None)) == ""
    monkeypatch.setattr(psutil, "disk_partitions", disks)
    warning = check_ran(section("http://team:5000"))
    assert "network file system (nfs4)" in warning and "set MORPHLINE_TRACKING_FOLDER" in warning
    (tmp_path / "local").mkdir()
    monkeypatch.setenv("MORPHLINE_TRACKING_FOLDER", str(tmp_path / "local"))
    assert check_ran(section(None)) == ""


def test_a_file_system_without_locks_is_said_and_tracked_all_the_same(
    migrated: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def cannot(lock: FileLock) -> None:
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(FileLock, "_acquire", cannot)
    with track("train@alps", section(None), {}) as tracker:
        tracker.metric("loss", 0.5, 0)
    book = open_book(migrated, "morphline")
    run = book.only("train@alps")
    assert (run.info.status, book.history(run, "loss")) == ("FINISHED", [(0, 0.5)])
    assert "two processes at once may do the same twice" in caplog.text


def test_of_two_that_want_one_lock_the_second_is_refused(tmp_path: Path) -> None:
    with lock(tmp_path, "one") as first, lock(tmp_path, "one", wait=0) as second, lock(tmp_path, "other") as other:
        assert (first, second, other) == (True, False, True)
    with lock(tmp_path, "one", wait=0) as again:
        assert again
