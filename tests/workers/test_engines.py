"""What starts workers: processes here with GPUs of their own, and SLURM's array jobs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.commands.fan_out import tasks_for
from pipeline.errors import UserError
from pipeline.workers import slurm
from pipeline.workers.groups import leashed
from pipeline.workers.local import Task, devices, run_here, share_devices, was_killed
from tests.workers.project import KEYS, dvc, log_of, morphline, ran


def test_each_worker_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5, 6,7")
    assert devices() == ["4", "5", "6", "7"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in share_devices(4, None)] == ["4", "5", "6", "7"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in share_devices(2, 2)] == ["4,5", "6,7"]
    assert share_devices(9, 0) == [{}] * 9, "they share what there is"
    with pytest.raises(UserError, match="3 workers with 2 each need 6, and there are 4.*-j.*--gpus 0"):
        share_devices(3, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices() == [] and share_devices(2, None) == [{}, {}]


PYTHON = (sys.executable, "-c")
NOTE = "import os, sys; open(sys.argv[1], 'a').write(os.environ.get('SLOT', '') + '\\n')"


def test_tasks_run_side_by_side_and_a_killed_one_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meet = f"{NOTE}; import time\nuntil = time.time() + 60\nwhile len(open(sys.argv[1]).readlines()) < 2: " \
           "time.sleep(.05); assert time.time() < until"  # fmt: skip
    both = str(tmp_path / "both")
    tasks = [Task("a", [*PYTHON, meet, both]), Task("b", [*PYTHON, meet, both])]
    assert run_here(tasks, [{"SLOT": "one"}, {"SLOT": "two"}], tmp_path, tmp_path / "logs") == []
    assert sorted((tmp_path / "both").read_text().split()) == ["one", "two"]

    dying = f"{NOTE}; import signal; os.kill(os.getpid(), signal.SIGKILL)"
    failing = "import sys; print('what it said'); sys.exit(3)"
    tasks = [Task("dying", [*PYTHON, dying, str(tmp_path / "tries")], 2), Task("failing", [*PYTHON, failing], 2)]
    assert sorted(run_here(tasks, [{}], tmp_path, tmp_path / "logs")) == ["dying", "failing"]
    assert len((tmp_path / "tries").read_text().splitlines()) == 3
    said = capsys.readouterr().err
    assert said.count("dying: was ended by signal 9") == 3
    assert said.count("failing: failed with exit code 3") == 1 and "    what it said" in said
    assert [was_killed(code) for code in (0, 1, 128, 137, 143, 255)] == [False, False, False, True, True, False]


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), open(sys.argv[1], "w").write("saved"), os._exit(0)))
print(os.getpid(), flush=True)
time.sleep(100)
"""


def test_what_a_command_left_behind_ends_with_it_and_may_save_first(tmp_path: Path) -> None:
    """As a training does whose DVC is gone at once."""
    leaving = (
        "import subprocess, sys\n"
        "left = subprocess.Popen([sys.executable, '-c', *sys.argv[1:]], stdout=subprocess.PIPE)\n"
        "print(left.stdout.readline().decode(), flush=True)"
    )
    started = [*PYTHON, leaving, STUBBORN, str(tmp_path / "saved")]
    with leashed(started, tmp_path, os.environ, output=subprocess.PIPE) as process:
        assert process.stdout and int(process.stdout.readline())
        assert process.wait(60) == 0
        assert (tmp_path / "saved").read_text() == "saved"


@pytest.mark.parametrize("leash_too", [False, True])
def test_a_command_ends_when_the_one_who_holds_its_leash_is_killed(tmp_path: Path, leash_too: bool) -> None:
    """Also where the leash is killed with it, and first: Ray ends a worker's children so."""
    holder = (
        "import os, sys, pathlib\\nfrom pipeline.workers.groups import leashed\\n"
        "with leashed(sys.argv[1:], pathlib.Path('.'), os.environ) as process: process.wait()"
    ).replace("\\n", "\n")
    process = subprocess.Popen(
        [*PYTHON, holder, *PYTHON, STUBBORN, str(tmp_path / "saved")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and int(process.stdout.readline())
    if leash_too:
        process.send_signal(signal.SIGSTOP)  # it would close the pipe when it sees the leash's end
        (leash,) = psutil.Process(process.pid).children()
        leash.kill()
    process.send_signal(signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 60
    while not (tmp_path / "saved").exists():
        assert time.monotonic() < until
        time.sleep(0.05)


# An `sbatch` that runs an array's elements itself, one after the other, as SLURM's own would: script from stdin.
SBATCH = """\
#!/bin/bash
printf '%s\\n' "$@" > "$SBATCH_SEEN"
for option in "$@"; do case "$option" in
    --array=*) range="${option#--array=}"; range="${range%%%*}" ;;
    --chdir=*) cd "${option#--chdir=}" ;;
    --output=*) output="${option#--output=}" ;;
    --job-name=*) name="${option#--job-name=}" ;;
esac; done
script=$(cat)
for number in $(seq "${range%-*}" "${range#*-}"); do
    log="${output/\\%x/$name}"
    SLURM_ARRAY_TASK_ID=$number bash -c "$script" > "${log/\\%a/$number}" 2>&1 < /dev/null
done
echo "4711;cluster"
"""


def test_slurm_runs_the_elements_of_an_array(few: Path) -> None:
    tools = few.parent / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(SBATCH)
    (tools / "sbatch").chmod(0o755)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = morphline(
        few, "fan-out", "train", "--on", "slurm", "-j", "7", "--gpus", "2", "--retries", "0", "--scratch",
        str(few.parent / "a scratch"), PATH=path, SBATCH_SEEN=str(few.parent / "seen"),
    )  # fmt: skip
    assert done.stdout == "train: 2 keys in 2 elements of job 4711; afterwards: `dvc repro train`\n"
    assert (few.parent / "seen").read_text().splitlines() == [
        "--parsable", "--job-name=train", "--array=0-1%7", f"--chdir={few}",
        f"--output={few}/.work/fan-out/%x-%a.log", "--no-requeue", "--ntasks=1", "--gpus-per-task=2",
    ]  # fmt: skip
    assert ran(few) == [f"train@{key}" for key in KEYS[:2]], (few / ".work/fan-out/train-0.log").read_text()
    assert "Running stage 'train@k0001'" in (few / ".work/fan-out/train-1.log").read_text()
    dvc(few, "repro", "train")
    assert not ran(few) and not log_of(few).exists()
    assert morphline(few, "fan-out", "train", "--on", "slurm").stdout == "train: nothing to do\n"


def test_slurm_takes_a_thousand_elements_which_may_have_several_keys_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"train@k{number}" for number in range(2500)]
    with pytest.raises(UserError, match="2500 elements, of which SLURM takes 1000.*--keys-each 3"):
        slurm.submit(tasks_for(names, 1, 0), 4, None, tmp_path, tmp_path, "train")
    tasks = tasks_for(names, 3, 1, "team", Path("/scratch"))
    assert (len(tasks), tasks[0].label, tasks[-1].label) == (834, "train@k0..k2", "train@k2499")
    assert list(tasks[0].command[3:]) == [
        "work",
        "--remote",
        "team",
        "--scratch",
        "/scratch",
        "train",
        "k0",
        "k1",
        "k2",
    ]
    assert tasks_for(["report"], 1, 0)[0].command[3:] == ["work", "report"]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch: it is not installed here"):
        slurm.submit(tasks, 4, None, tmp_path, tmp_path, "train")
