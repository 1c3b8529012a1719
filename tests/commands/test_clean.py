import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.commands import clean
from pipeline.stages import prepare, train
from pipeline.training.checkpoints import training_lock
from tests.project import contents

LONG_AGO = time.time() - 40 * clean.DAY


def age(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, size in (
        ("latents/old.safetensors", 3000),
        ("latents/new.safetensors", 10),
        ("adapters/finished/adapter.safetensors", 1_500_000),
        ("adapters/finished/curves.safetensors", 500),
        ("adapters/unfinished/checkpoint.safetensors", 20),
        ("adapters/in-use/checkpoint.safetensors", 20),
        ("baselines/old/made.json", 30),
        ("baselines/old/frames/0000.png", 70),
        ("digests.json", 5),
    ):
        path = tmp_path / ".work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    age(tmp_path / ".work")
    os.utime(tmp_path / ".work/latents/new.safetensors")
    return tmp_path / ".work"


def test_it_says_what_would_go_and_deletes_nothing_unasked(work: Path) -> None:
    before = sorted(work.rglob("*"))
    assert clean.run(30, delete=False) == [
        "1 encoded pictures, 3.0 kB",
        "1 finished adapters, 1.5 MB",
        "1 morphs without adapters, 100 bytes",
        "2 unfinished trainings, 40 bytes",
        "1.5 MB in .work have been unused for 30 days: `morphline clean --days 30 --delete` frees them",
    ]
    assert sorted(work.rglob("*")) == before
    assert clean.run(41, delete=True) == ["nothing in .work has been unused for 41 days"]
    assert sorted(work.rglob("*")) == before


def test_it_deletes_what_it_named_but_for_what_is_being_trained(work: Path) -> None:
    with training_lock(work / "adapters/in-use"):
        said = clean.run(30, delete=True)
    assert said[-2:] == ["freed 1.5 MB", "1 left alone: another process needs them"]
    left = {path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file()}
    kept = {"latents/new.safetensors", "adapters/in-use/checkpoint.safetensors", "digests.json"}
    assert left - {"adapters/in-use.lock"} == kept


def test_what_a_training_uses_again_counts_as_used_and_results_do_not_depend_on_it(project: Path) -> None:
    prepare.run("hills")
    train.run("hills")
    adapters = contents(project / "models/adapters/hills")
    age(project / ".work")
    train.run("hills")
    assert clean.run(30, delete=False) == ["nothing in .work has been unused for 30 days"]
    time.sleep(0.01)
    assert clean.run(0, delete=True)[:2] == ["3 encoded pictures, 123.6 kB", "3 finished adapters, 59.6 kB"]
    train.run("hills")
    assert contents(project / "models/adapters/hills") == adapters


@pytest.mark.parametrize(("size", "said"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2.5e9, "2.5 GB")])
def test_sizes_are_readable(size: float, said: str) -> None:
    assert clean.readable(size) == said


def test_a_studio_that_serves_keeps_its_jobs_and_drafts(work: Path) -> None:
    for name in ("jobs/one/job.json", "drafts/one/form.json"):
        path = work / "studio" / name
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    age(work / "studio")
    with FileLock(work / "studio/studio.lock"):
        said = clean.run(30, delete=True)
        assert not any("studio" in line for line in said) and "2 left alone: another process needs them" in said
        assert (work / "studio/jobs/one/job.json").is_file() and (work / "studio/drafts/one/form.json").is_file()
    assert "1 drafts of the studio, 2 bytes" in clean.run(30, delete=True)
    assert not (work / "studio/jobs/one").exists() and not (work / "studio/drafts/one").exists()
