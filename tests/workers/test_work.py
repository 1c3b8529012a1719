"""One worker: what it works on, what it leaves, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.errors import UserError
from pipeline.workers.stages import choose, find_stale, inputs_of, open_project
from tests.project import contents, edit
from tests.workers.project import KEYS, dvc, environment, git, log_of, morphline, ran

ONE, TWO = KEYS[:2]


def work(project: Path, *arguments: str, check: bool = True, **variables: str) -> "subprocess.CompletedProcess[str]":
    scratch = project.parent / "scratch"
    done = morphline(project, "work", "--scratch", str(scratch), *arguments, check=check, **variables)
    assert not list(scratch.glob("*")), "the clone is deleted"
    return done


def test_a_worker_works_on_the_project_as_it_is_and_changes_nothing_there(few: Path) -> None:
    """Edits, new files and a second branch; what is ignored stays at home; and `dvc repro` takes what was made."""
    git(few, "checkout", "-qb", "other")
    edit(few / "params.yaml", lambda text: text.replace("seed: 0", "seed: 7"))
    edit(few / "stage.py", lambda text: text + "import extra\nassert extra.AS_IT_IS\n")
    (few / "extra.py").write_text("AS_IT_IS = True\n")
    (few / ".gitignore").open("a").write("/ignored\n")
    (few / "ignored").write_text("secret")
    dvc(few, "repro", "prepare")
    ran(few)
    before = contents(few, ".git", ".dvc", ".work")
    work(few, "train", ONE)
    assert ran(few) == [f"train@{ONE}"]
    assert contents(few, ".git", ".dvc", ".work") == before
    assert morphline(few, "fan-out", "train", "--list").stdout == f"{TWO}\n"
    dvc(few, "repro", f"train@{ONE}")
    assert not ran(few), "taken from the cache"
    assert (few / f"models/adapters/{ONE}/a").read_text() == f"train of prepare of pictures of {ONE}\n"
    assert (few / f"reports/{ONE}.csv").is_file()
    assert "worktree" not in git(few, "worktree", "list", "--porcelain").replace("worktree " + str(few), "")


def test_a_worker_exits_with_the_stages_code_and_goes_on_with_the_next_key(few: Path) -> None:
    (few / f"data/raw/{ONE}.txt").write_text("wrong")
    dvc(few, "repro", "prepare")
    ran(few)
    done = work(few, "train", check=False)  # no key: all that need work
    assert done.returncode == 3 and "exited with 3" in done.stderr
    assert ran(few) == [f"train@{ONE}", f"train@{TWO}"]
    assert morphline(few, "fan-out", "train", "--list").stdout == f"{ONE}\n"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_is_stopped_leaves_no_process_and_no_clone(few: Path, sent: signal.Signals) -> None:
    """After SIGKILL the stage ends all the same, and the next worker deletes the clone."""
    gate = log_of(few).with_name(f"wait-train-{ONE}")
    gate.touch()
    scratch = few.parent / "scratch"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "work", "--scratch", str(scratch), "train", ONE], cwd=few,
        env=environment(few), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    until = time.monotonic() + 300
    while not log_of(few).exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    stage = psutil.Process(int(log_of(few).read_text().split()[1]))
    process.send_signal(sent)
    _, said = process.communicate(timeout=300)
    stage.wait(60)
    gate.unlink()
    if sent == signal.SIGKILL:
        assert list(scratch.glob("*"))
    else:
        assert process.returncode == 128 + sent and b"Traceback" not in said
        assert not list(scratch.glob("*"))
    ran(few)
    work(few, "train", ONE)
    assert ran(few) == [f"train@{ONE}"], "nothing was taken for finished"


def test_a_worker_without_the_cache_fetches_from_a_remote_and_pushes_there(few: Path) -> None:
    """As on a machine that shares nothing with the project but the remote; its path is relative to the settings."""
    dvc(few, "remote", "add", "team", "../store")
    dvc(few, "push", "--remote", "team")
    cache = contents(few / ".dvc/cache")
    work(few, "--remote", "team", "train", ONE)
    assert ran(few) == [f"train@{ONE}"]
    assert contents(few / ".dvc/cache") == cache, "the project's own cache is left alone"
    dvc(few, "config", "core.remote", "team")
    dvc(few, "repro", "--pull", f"train@{ONE}")
    assert not ran(few) and (few / f"models/adapters/{ONE}/a").is_file()


def test_mistakes_are_told_before_anything_runs(few: Path) -> None:
    for arguments, message in (
        (["nosuch"], "dvc.yaml: there is no stage 'nosuch'. There are: prepare, train, measure."),
        (["train", "nosuch"], f"stage train: there is no key 'nosuch'. There are: train@{ONE}, train@{TWO}."),
        (["measure"], "stage measure: DVC keeps no record of its runs, so that what a worker makes is lost."
                      " Run `dvc repro measure` here."),
        (["--remote", "nosuch", "train"], "--remote nosuch: there is no such DVC remote. There are: none."),
    ):  # fmt: skip
        done = work(few, *arguments, check=False)
        assert (done.returncode, done.stderr.splitlines()[1].strip()) == (1, message)
    assert not ran(few)


def test_what_needs_work_is_what_neither_dvc_lock_nor_the_run_cache_has(
    few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(few)
    for name in environment(few).items():
        monkeypatch.setenv(*name)

    def stale(*keys: str) -> list[str]:
        repo = open_project(few)
        return find_stale(repo, choose(repo, "train", keys))

    assert stale() == [f"train@{ONE}", f"train@{TWO}"] and stale(TWO) == [f"train@{TWO}"]
    assert inputs_of(open_project(few), [f"train@{ONE}"]) == [f"prepare@{ONE}"]
    dvc(few, "repro", "train")
    assert stale() == []
    raw = few / f"data/raw/{ONE}.txt"
    first = raw.read_text()
    raw.write_text("others")
    with pytest.raises(UserError, match=f"it waits for prepare@{ONE}. Run `dvc repro prepare@{ONE}` first"):
        stale()
    assert stale(TWO) == []
    dvc(few, "repro", "prepare")
    assert stale() == [f"train@{ONE}"]
    raw.write_text(first)
    dvc(few, "repro", "prepare")
    assert stale() == [], "the run-cache has it from before"


def test_a_project_without_a_commit_is_refused(few: Path) -> None:
    for path in (few / ".git").glob("refs/heads/*"):
        path.unlink()
    done = work(few, "train", check=False)
    assert done.returncode == 1 and "git init && git add --all && git commit" in done.stderr
    assert os.path.lexists(few / "stage.py")
