import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.adapters.checkpoints import TrainState, load_checkpoint, save_checkpoint, work_folder
from pipeline.errors import UserError

STATE = TrainState(7, {"weight/a": torch.arange(6.0).view(2, 3), "step/a": torch.tensor(7.0)})


def test_a_state_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", STATE)
    back = load_checkpoint(tmp_path / "a")
    assert back is not None and back.step == 7
    assert torch.equal(back.tensors["weight/a"], STATE.tensors["weight/a"])
    assert [path.name for path in tmp_path.iterdir()] == ["a"], "something half-written was left"


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "a") is None


def test_the_folder_goes_when_the_work_succeeds_and_stays_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on purpose"), work_folder(tmp_path / "job") as folder:
        save_checkpoint(folder / "a", STATE)
        raise RuntimeError("on purpose")
    assert load_checkpoint(tmp_path / "job" / "a") is not None
    with work_folder(tmp_path / "job"):
        pass
    assert not (tmp_path / "job").exists()


def test_a_second_process_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pipeline.adapters.checkpoints import work_folder\n"
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
