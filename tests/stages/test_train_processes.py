"""Two real processes, through `accelerate launch` and gloo, against one."""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from pipeline.base.opening import open_base
from pipeline.params import load_params
from pipeline.stages import prepare, train
from pipeline.tracking.names import legal_key, model_name
from tests.project import ROOT, contents, edit, with_values


def morphline(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("key", "changes", "again"),
    [
        ("hills", {}, False),
        ("dots", {}, False),  # tests/stages/test_two_hosts.py has it again, byte by byte
        ("dots", {"train.text_rate": 0.01, "train.objective": "smooth", "train.smooth_weight": 30.0}, True),
    ],
)
def test_two_processes_train_what_one_trains(
    project: Path, database: str, key: str, changes: dict[str, str | float], again: bool
) -> None:
    """Three adapters shared out, and one trained on halves of each batch: also with its text encoder, and where the
    moving mean of an objective is over both halves. again: whether it is made twice, which takes long."""
    prepare.run(key)
    values = {"machine.reuse": "false", **changes}
    edit(project / "params.yaml", lambda text: with_values(text, values))
    train.run(key)
    folder = project / "models/adapters" / key
    one = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    edit(project / "params.yaml", lambda text: with_values(text, {"machine.processes": 2}))
    done = morphline("train", key)
    assert done.returncode == 0, done.stderr
    two = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    assert any(tensor.startswith("text_encoder.") for tensors in two.values() for tensor in tensors) is (
        "train.text_rate" in changes
    )
    assert one.keys() == two.keys()
    for name, tensors in one.items():
        close = torch.cat([torch.isclose(tensors[k], two[name][k], atol=1e-4).flatten() for k in tensors])
        assert float(close.double().mean()) > 0.98, name
    if again:
        first = contents(folder)
        assert morphline("train", key).returncode == 0
        assert contents(folder) == first, "two processes do not repeat themselves"
    names = sorted(path.stem for path in folder.glob("*.safetensors"))
    check_runs(database, key, names, steps=6 if key == "hills" else 4, count=3 if again else 2)


def check_runs(database: str, key: str, names: list[str], steps: int, count: int) -> None:
    """The last trainings, by one process and once or twice by two, logged the curves of every adapter, each once."""
    from mlflow import MlflowClient

    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("morphline").experiment_id
    order = ["attributes.start_time DESC"]
    runs = client.search_runs([experiment], f"attributes.run_name = 'train@{key}'", max_results=count, order_by=order)
    assert len(runs) == count
    for run in runs:
        for name in names:
            for curve in ("loss", "optimizer/grad_norm", "optimizer/learning_rate"):
                history = client.get_metric_history(run.info.run_id, legal_key(f"{curve}/{name}"))
                assert [metric.step for metric in history] == list(range(steps)), (curve, name)
        models = [client.get_logged_model(output.model_id) for output in run.outputs.model_outputs]
        assert sorted(model.name for model in models) == sorted(model_name(f"{key}-{name}") for name in names)


def test_a_users_mistake_is_told_once_and_without_a_traceback(project: Path) -> None:
    prepare.run("dots")
    values = {"machine.processes": 2, "train.targets": "[to_z]", "machine.reuse": "false"}
    edit(project / "params.yaml", lambda text: with_values(text, values))
    with socket.socket() as other:
        with suppress(OSError):  # somebody has it: as well
            other.bind(("localhost", 29400))  # where torch's launcher meets unless told otherwise; another training's
            other.listen()
        done = morphline("train", "dots")
    assert done.returncode == 1
    assert done.stderr.count("no layer is called to_z") == 1 and "Traceback" not in done.stderr


def test_processes_encode_a_share_of_a_set_each_and_find_the_others(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare.run("hills")
    base, prepared = open_base(load_params().base, torch.device("cpu")), Path("data/prepared/hills")
    alone = train.encoded_examples(base, prepared, False, Accelerator(cpu=True))
    files, seen = sorted(train.LATENTS.iterdir()), list[int]()
    contents_alone = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()

    class Shared:
        num_processes, process_index = 2, 1

        def wait_for_everyone(self) -> None:
            seen.append(len(list(train.LATENTS.iterdir())))

    shared = train.encoded_examples(base, prepared, False, cast(Accelerator, Shared()))
    assert len(files) == 3 and seen == [1]  # the second of three
    assert shared == alone and [path.read_bytes() for path in files] == contents_alone
