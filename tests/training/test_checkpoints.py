import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.training.checkpoints import Checkpoints, TrainState, read_state, training_locks, work_folder, write_state

STATE = TrainState(7, {"weight/a": torch.arange(6.0).view(2, 3), "step/a": torch.tensor(7.0)})


def test_the_last_two_states_are_kept_and_the_last_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (5, 6, 7):
        checkpoints.save("a", TrainState(step, STATE.tensors))
    back = checkpoints.load("a")
    assert back is not None and back.step == 7
    assert torch.equal(back.tensors["weight/a"], STATE.tensors["weight/a"])
    kept = sorted((tmp_path / "a").iterdir())
    assert [path.name for path in kept] == ["checkpoint-before.safetensors", "checkpoint.safetensors"]
    assert [state.step for state in map(read_state, kept) if state] == [6, 7]
    checkpoints.forget("a")
    assert checkpoints.load("a") is None and not list((tmp_path / "a").iterdir())


def test_no_checkpoint_is_none_and_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Checkpoints(tmp_path).load("a") is None
    said = capsys.readouterr()
    assert said.out + said.err == ""


@pytest.mark.parametrize("damage", [b"", b"\xff" * 40, "cut"])
def test_a_damaged_state_is_named_and_the_one_before_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes | str
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (5, 6):
        checkpoints.save("a", TrainState(step, STATE.tensors))
    path = tmp_path / "a/checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-4] if isinstance(damage, str) else damage)
    back = checkpoints.load("a")
    assert back is not None and back.step == 5
    said = capsys.readouterr()
    assert f"{path}: a damaged checkpoint is skipped" in said.out + said.err


def test_the_folder_goes_when_the_work_succeeds_and_stays_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on purpose"), work_folder(tmp_path / "job") as folder:
        write_state(folder / "a", STATE)
        raise RuntimeError("on purpose")
    assert read_state(tmp_path / "job" / "a") is not None
    with work_folder(tmp_path / "job"):
        pass
    assert not (tmp_path / "job").exists()


def test_a_second_process_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pipeline.training.checkpoints import work_folder\n"
        "with work_folder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "job")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert holder.stdin and holder.stdout
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {holder.pid} "), work_folder(tmp_path / "job"):
        pass
    holder.stdin.close()
    assert holder.wait(30) == 0
    with work_folder(tmp_path / "job"):
        pass


def test_more_locks_than_files_may_be_open_raise_the_limit_or_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, hard))
    try:
        paths = [tmp_path / f"{number}" for number in range(150)]
        with training_locks(paths):
            assert len(list(tmp_path.glob("*.lock"))) == len(list(tmp_path.glob("*.pid"))) == 150
        assert not list(tmp_path.glob("*.pid"))
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (100, 150))
        with pytest.raises(
            UserError, match=r"150 adapters at once need \d+ open files, of which the system allows 150"
        ):
            training_locks(paths).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
