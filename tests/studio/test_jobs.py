"""The queue: one job at a time, cancelled with all its processes, and nothing lost by a restart."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pipeline.errors import UserError
from pipeline.studio import runner as running
from pipeline.studio.jobs import MOST_WAITING, Queue
from pipeline.studio.project import Project
from pipeline.studio.runner import Runner
from tests.hostile.disks import full_disk
from tests.studio.conftest import runner_of, until, wait_for

pytestmark = pytest.mark.usefixtures("interruptible")


def test_jobs_run_one_at_a_time_in_order(project: Project) -> None:
    runner = runner_of(project)
    queue = runner.queue
    first = queue.add("morph", "first", ["name=first", "steps=5"], "a")
    second = queue.add("morph", "second", ["name=second"], "b")
    runner.start()
    done = wait_for(queue, second, "done")
    assert queue.get(first.id).ended <= done.started
    progress = runner.progress(queue.get(first.id))
    runner.stop()
    assert Path("ran.txt").read_text().split() == ["first", "second"]
    assert (progress.stage, progress.label, progress.step, progress.of) == ("train@a", "alps", 5, 5)
    assert progress.losses[0] == 1 and progress.losses[-1] == pytest.approx(0.2)
    assert done.started and done.ended and done.process is None


def test_a_job_that_fails_says_why_and_runs_again_when_asked(project: Project) -> None:
    runner = runner_of(project)
    runner.start()
    job = runner.queue.add("morph", "wrong", ["fail=1"], "a")
    failed = wait_for(runner.queue, job, "failed")
    assert failed.problems == ("params.yaml: morph.steps: 5000 steps. Write no more.",)
    runner.queue.retry(job.id)
    until(lambda: Path("ran.txt").read_text().count("\n") == 2)
    wait_for(runner.queue, job, "failed")
    runner.stop()
    done = runner.queue.add("morph", "right", [], "b")
    with pytest.raises(UserError, match="it is queued"):
        runner.queue.retry(done.id)


def test_a_cancelled_job_gets_the_signal_of_ctrl_c(project: Project) -> None:
    runner = runner_of(project)
    runner.start()
    job = runner.queue.add("morph", "long", ["steps=600"], "a")
    until(lambda: runner.progress(runner.queue.get(job.id)).step > 1)
    pid = runner.queue.get(job.id).process[0]
    assert os.getpgid(pid) == pid != os.getpgid(0)
    runner.cancel(job.id)
    wait_for(runner.queue, job, "cancelled")
    runner.stop()
    assert Path("saved.txt").exists() and not psutil.pid_exists(pid)


def test_a_job_that_hears_nothing_is_killed(project: Project) -> None:
    runner = runner_of(project, (signal.SIGINT, 0.5), (signal.SIGTERM, 0.5), (signal.SIGKILL, 20.0))
    runner.start()
    job = runner.queue.add("morph", "deaf", ["steps=600", "ignore=1"], "a")
    until(lambda: runner.progress(runner.queue.get(job.id)).step > 1)
    pid = runner.queue.get(job.id).process[0]
    runner.cancel(job.id)
    wait_for(runner.queue, job, "cancelled")
    runner.stop()
    assert not psutil.pid_exists(pid) and not Path("saved.txt").exists()


def test_a_job_that_waits_is_cancelled_at_once(project: Project) -> None:
    runner = runner_of(project)
    job = runner.queue.add("morph", "waits", [], "a")
    runner.cancel(job.id)
    assert runner.queue.get(job.id).status == "cancelled" and not Path("ran.txt").exists()


def test_a_server_that_ends_interrupts_its_job_and_the_next_one_goes_on(project: Project) -> None:
    runner = runner_of(project)
    runner.start()
    job = runner.queue.add("morph", "long", ["steps=30"], "a")
    later = runner.queue.add("morph", "later", [], "b")
    until(lambda: runner.progress(runner.queue.get(job.id)).step > 1)
    runner.stop()
    assert runner.queue.get(job.id).status == "interrupted" and Path("saved.txt").exists()
    again = runner_of(project)
    assert [one.status for one in again.queue.all()] == ["interrupted", "queued"]
    again.start()
    assert wait_for(again.queue, job, "done").ended < wait_for(again.queue, later, "done").ended
    again.stop()


def test_a_server_that_was_killed_leaves_its_job_running_for_the_next_one(project: Project) -> None:
    """The job outlives its server; the next one waits for it, and then runs the command again, which is done."""
    queue = Queue()
    job = queue.add("morph", "long", ["name=long", "steps=20"], "a")
    job.folder.mkdir(exist_ok=True)
    with job.log.open("wb") as log:
        process = subprocess.Popen([*project.morphline, *job.command], stdout=log, stderr=log, start_new_session=True)
    born = psutil.Process(process.pid).create_time()
    queue.change(job.id, status="running", started=time.time(), process=(process.pid, born))
    runner = runner_of(project)
    runner.start()
    until(lambda: runner.progress(runner.queue.get(job.id)).step > 1)
    assert runner.queue.get(job.id).status == "running" and process.poll() is None
    wait_for(runner.queue, job, "done")
    runner.stop()
    assert process.wait(0) == 0 and Path("ran.txt").read_text().split() == ["long", "long"]


def test_a_job_whose_process_is_gone_runs_again(project: Project) -> None:
    queue = Queue()
    job = queue.add("morph", "gone", ["name=gone"], "a")
    # The number of a process that is another one's now.
    queue.change(job.id, status="running", process=(os.getpid(), 1.0))
    runner = Runner(Queue(), project.morphline)
    runner.start()
    wait_for(runner.queue, job, "done")
    runner.stop()
    assert Path("ran.txt").read_text().split() == ["gone"]


def test_a_damaged_job_does_not_harm_the_others(project: Project) -> None:
    queue = Queue()
    jobs = [queue.add("morph", f"job {number}", [], f"key-{number}") for number in range(4)]
    (jobs[0].folder / "job.json").write_text("{")
    (jobs[1].folder / "job.json").write_text('{"id": "x", "status": "running"}')
    (jobs[2].folder / "job.json").write_bytes(b"\xff\x00")
    assert [job.id for job in Queue().all()] == [jobs[3].id]


def test_the_queue_has_an_end(project: Project) -> None:
    queue = Queue()
    failed = queue.add("morph", "failed", [], "failed")
    queue.change(failed.id, status="failed")
    for number in range(MOST_WAITING):
        queue.add("morph", "many", [], f"key-{number}")
    for more in (lambda: queue.add("morph", "one more", [], "key"), lambda: queue.retry(failed.id)):
        with pytest.raises(UserError, match=f"{MOST_WAITING} jobs are waiting"):
            more()
    assert queue.get(failed.id).status == "failed"


def test_a_job_has_a_folder_and_a_caption_may_name_it(project: Project) -> None:
    job = Queue().add("morph", "a", ["--caption=a {folder} on a desk", "--out", "{folder}/clip.mp4"], "a")
    assert job.command == ("--caption=a {folder} on a desk", "--out", f"{job.folder}/clip.mp4")


def test_a_full_disk_loses_no_job(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends while nothing can be written; with room again it is noted, and what waits is run."""
    monkeypatch.setattr(running, "PAUSE", 0.1)
    runner = runner_of(project)
    first = runner.queue.add("morph", "first", ["name=first", "steps=30"], "a")
    second = runner.queue.add("morph", "second", ["name=second"], "b")
    runner.start()
    try:
        until(lambda: runner.queue.get(first.id).process)
        process = psutil.Process(runner.queue.get(first.id).process[0])
        with full_disk():
            until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
            time.sleep(1)
            assert runner.queue.get(first.id).status == "running" and runner.queue.get(second.id).status == "queued"
        wait_for(runner.queue, first, "done")
        wait_for(runner.queue, second, "done")
    finally:
        runner.stop()


def test_a_full_disk_at_the_start_loses_no_job(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was killed has left one running, whose process is gone."""
    monkeypatch.setattr(running, "PAUSE", 0.1)
    queue = Queue()
    job = queue.add("morph", "gone", ["name=gone"], "a")
    queue.change(job.id, status="running", process=(1, 0.0))
    runner = runner_of(project)
    with full_disk():
        runner.start()
        time.sleep(1)
        assert runner.queue.get(job.id).status == "running"
    wait_for(runner.queue, job, "done")
    runner.stop()


def test_a_job_whose_folder_cannot_be_written_to_fails_and_the_next_one_runs(project: Project) -> None:
    runner = runner_of(project)
    wrong = runner.queue.add("morph", "wrong", [], "a")
    right = runner.queue.add("morph", "right", ["name=right"], "b")
    wrong.log.mkdir()
    runner.start()
    failed = wait_for(runner.queue, wrong, "failed")
    assert "Is a directory" in failed.problems[0]
    wait_for(runner.queue, right, "done")
    runner.stop()
