"""A worker that trains: what it made is taken, and its tracked run is at home."""

import sys
from pathlib import Path

from mlflow import MlflowClient

from tests.project import DOTS, make_clone, tiny_params
from tests.workers.project import dvc, environment, git, morphline

SETS = "  dots: {adapter: set, prepare: {}, train: {steps: 4}, sample: {captions: 1}}\n"


def test_a_real_training_in_a_worker(tmp_path: Path, tiny_folders: dict[str, Path], empty_database: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "morphline").write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@"\n')
    (tools / "morphline").chmod(0o755)
    params = tiny_params({"tracking.uri": "null", "tracking.system_every": "null"}, sets=SETS, morphs="")
    project = make_clone(tmp_path / "project", tiny_folders["epsilon"], params, {"dots": DOTS})
    (project / "mlflow.db").write_bytes(empty_database.read_bytes())
    path = {"PATH": f"{tools}:{environment(project)['PATH']}", "PYTHONPATH": str(project)}
    git(project, "init", "-q", "-b", "main")
    git(project, "add", ".")
    git(project, "commit", "-qm", "Begin")
    dvc(project, "repro", "prepare", **path)

    morphline(project, "work", "train", "dots", **path)
    assert not list((project / "models/adapters").glob("dots*")), "the workspace is left alone"
    said = dvc(project, "repro", "train", **path).stdout
    assert "Stage 'train@dots' is cached - skipping run" in said
    assert list((project / "models/adapters/dots").glob("*.safetensors"))
    assert (project / "reports/curves/sets/dots.csv").is_file()

    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("morphline").experiment_id])
    names = {run.info.run_name: run for run in found}
    trained = names["train@dots"]
    parent = client.get_run(trained.data.tags["mlflow.parentRunId"])
    assert sorted(names) == sorted(["prepare@dots", "train@dots", parent.info.run_name]), "one parent for both"
    assert trained.info.status == "FINISHED" and trained.data.tags["dvc.stage"] == "train@dots"
    assert len(client.get_metric_history(trained.info.run_id, "loss/set")) == 4
    assert trained.outputs.model_outputs and trained.inputs.dataset_inputs
