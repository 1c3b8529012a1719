"""The whole of dvc.yaml, run by DVC itself on a tiny base: what runs, what does not, and what comes out."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.project import DOTS, HILLS, contents, edit, make_clone, paint, tiny_params, with_values
from tests.warm import warm_morphline

PAIR = {name: text for name, text in HILLS.items() if name != "blue.png"}
MORPHS = "  hills: {set: hills, style: none, keyframes: [red hill.png, großer See.jpg], morph: {}}\n"
EDITS = "  hills: {set: hills, adapters: {dots: 1.0}, edit: {}}\n"
STAGES = [
    "check", "prepare@hills", "prepare@dots", "train@hills", "train@dots", "sample@hills", "sample@dots",
    "morph@hills", "evaluate@hills", "styles", "edit@hills", "report",
]  # fmt: skip
MADE = ("data/prepared", "data/morphs", "data/styles", "data/edits", "models/adapters", "reports")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that can fork")


@dataclass(frozen=True)
class Answer:
    """What a dvc command did. ran: the stages that it ran, in order."""

    ran: list[str]
    code: int
    said: str


def dvc(project: Path, morphline: Path, *arguments: str) -> Answer:
    """Run dvc with the `morphline` of a folder."""
    who = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = os.pathsep.join([str(morphline), os.environ["PATH"]])
    answer = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=project,
        env={**os.environ, **who, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Answer(re.findall(r"Running stage '([^']+)'", answer.stdout), answer.returncode, answer.stdout)


def git(project: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.quotepath=off", *arguments]
    return subprocess.run(command, cwd=project, check=True, capture_output=True, text=True).stdout


def locked(project: Path) -> dict[str, Any]:
    """Each stage's outputs with their hashes, as dvc.lock has them."""
    content = YAML(typ="safe").load((project / "dvc.lock").read_text(encoding="utf-8"))
    return {name: stage["outs"] for name, stage in content["stages"].items()}


def made(project: Path) -> dict[str, dict[str, bytes]]:
    return {folder: contents(project / folder) for folder in MADE}


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory, tiny_folders: dict[str, Path], database: str) -> Path:
    """A clone of this repository with tiny pictures and a tiny pocket, after its first `dvc repro`, committed."""
    project = tmp_path_factory.mktemp("clone") / "project"
    tracking = {"tracking.uri": database, "tracking.experiment": "by DVC"}
    values = {"train.steps": 3, "sample.captions": 1, "sample.seeds": 1, **tracking}
    params = tiny_params(values, morphs=MORPHS, edits=EDITS)
    make_clone(project, tiny_folders["epsilon"], params, {"hills": PAIR, "dots": DOTS})
    git(project, "init", "-q", "-b", "main")
    with warm_morphline(tmp_path_factory.mktemp("warm") / "bin", hash_seed=1) as morphline:
        answer = dvc(project, morphline, "repro")
    assert answer.code == 0, answer.said
    assert sorted(answer.ran) == sorted(STAGES), "the frozen pocket apart, every stage runs once"
    git(project, "add", ".")
    git(project, "commit", "-qm", "Run the pipeline")
    return project


@pytest.fixture(scope="module")
def morphline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with warm_morphline(tmp_path_factory.mktemp("warm") / "bin", hash_seed=2) as folder:
        yield folder


@pytest.fixture
def project(reproduced: Path, tmp_path: Path) -> Path:
    """A copy of it, DVC's cache and all, to change."""
    return Path(shutil.copytree(reproduced, tmp_path / "project", symlinks=True))


def test_git_sees_small_figures_and_no_large_files(reproduced: Path) -> None:
    tracked = git(reproduced, "ls-files", "reports", "models", "data").splitlines()
    given = ("data/raw/", "models/pocket/", "models/dvc.", ".gitkeep")
    assert [name for name in tracked if not (name.startswith(given) or name.endswith(given))] == [
        "reports/curves/morphs/hills.csv",
        "reports/curves/sets/dots.csv",
        "reports/curves/sets/hills.csv",
        "reports/metrics.json",
        "reports/metrics/hills.json",
    ]
    assert git(reproduced, "status", "--porcelain") == ""


def test_again_nothing_runs_whatever_the_machine_and_the_tracking(project: Path, morphline: Path) -> None:
    (project / "data/morphs/.hills.0123456789abcdef.partial").mkdir()
    (project / "data/morphs/.hills.0123456789abcdef.partial/0000.png").write_bytes(b"left by a kill")
    values = {
        "machine.device": "auto", "machine.batch": 1, "machine.workers": 2, "machine.checkpoint_every": 1,
        "tracking.uri": "http://127.0.0.1:9", "tracking.experiment": "another", "tracking.required": "false",
    }  # fmt: skip
    edit(project / "params.yaml", lambda text: with_values(text, values))
    before = made(project)
    answer = dvc(project, morphline, "repro")
    assert (answer.ran, answer.code) == ([], 0)
    assert "Data and pipelines are up to date." in answer.said
    assert made(project) == before
    assert git(project, "status", "--porcelain").split() == ["M", "params.yaml"]


def test_by_force_every_stage_gives_the_same_hashes(project: Path, morphline: Path) -> None:
    before, outputs = locked(project), made(project)
    answer = dvc(project, morphline, "repro", "--force")
    assert answer.code == 0 and sorted(answer.ran) == sorted(STAGES), answer.said
    assert locked(project) == before
    assert made(project) == outputs


def test_another_rank_reruns_training_and_what_follows(project: Path, morphline: Path) -> None:
    before = locked(project)
    answer = dvc(project, morphline, "exp", "run", "-n", "other-rank", "-S", "train.rank=3")
    assert answer.code == 0, answer.said
    assert sorted(answer.ran) == sorted(name for name in STAGES if not name.startswith("prepare"))
    after = locked(project)
    assert {name for name in before if before[name] != after[name]} == {
        "train@hills", "train@dots", "sample@hills", "sample@dots", "morph@hills", "evaluate@hills", "styles",
        "edit@hills", "report",
    }  # fmt: skip


def test_another_picture_of_one_set_reruns_that_set_alone(project: Path, morphline: Path) -> None:
    paint(project / "data/raw/dots/d1.png", 77)
    answer = dvc(project, morphline, "repro")
    assert answer.code == 0, answer.said
    assert sorted(answer.ran) == sorted(
        ["check", "prepare@dots", "train@dots", "sample@dots", "styles", "edit@hills", "report"]
    )


def test_an_override_of_one_set_reruns_that_set_alone(project: Path, morphline: Path) -> None:
    edit(project / "params.yaml", lambda text: text.replace("sample: {captions: 1}", "sample: {captions: 2}"))
    answer = dvc(project, morphline, "repro")
    assert answer.code == 0, answer.said
    assert sorted(answer.ran) == sorted(["check", "sample@dots", "report"])


@pytest.mark.parametrize("stage", ["train@hills", "evaluate@hills"])
def test_mlflow_draws_the_curves_of_a_stage_above_its_single_figures(
    reproduced: Path, database: str, stage: str
) -> None:
    """Its sections are the names' parts before the last slash, in their order, and at the end one for the rest; it
    draws bars where the last step is 0."""
    from mlflow import MlflowClient

    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("by DVC").experiment_id
    run, *_ = client.search_runs([experiment], f"attributes.run_name = '{stage}'")
    sections: dict[str, list[str]] = {}
    for name in run.data.metrics:
        if not name.startswith("system/"):
            sections.setdefault(name.rpartition("/")[0], []).append(name)
    last = {name: client.get_metric_history(run.info.run_id, name)[-1].step for name in run.data.metrics}
    first, *_, end = sorted(sections, key=lambda section: (section == "", section))
    assert all(last[name] >= 1 for name in sections[first]), first
    assert any(last[name] == 0 for name in sections[end]), end


def test_two_parents_differ_in_mlflow_only_where_their_states_do(project: Path, morphline: Path, database: str) -> None:
    """So that Compare shows true differences alone, and the pictures of both side by side."""
    from mlflow import MlflowClient

    answer = dvc(project, morphline, "exp", "run", "-n", "other-steps", "-S", "morph.steps=3")
    assert answer.code == 0, answer.said
    client, top = MlflowClient(database), Path(database.removeprefix("sqlite:///")).parent
    runs = client.search_runs(
        [client.get_experiment_by_name("by DVC").experiment_id], order_by=["attributes.start_time ASC"]
    )
    parents = {run.info.run_name: run for run in reversed(runs) if "mlflow.parentRunId" not in run.data.tags}
    whole, part = list(parents.values())[-1], parents["other-steps"]

    differing = {
        key for key in whole.data.params | part.data.params if whole.data.params.get(key) != part.data.params.get(key)
    }
    assert differing == {"morph.hills.steps"} and len(whole.data.params) > 50
    assert set(whole.data.metrics) == set(part.data.metrics)
    assert {"train.dots/final_loss", "morph.hills/inverted_noise_std", "hills/endpoint_psnr"} < set(part.data.metrics)
    same = [key for key in part.data.metrics if key.startswith("train.")]
    assert [whole.data.metrics[key] for key in same] == [part.data.metrics[key] for key in same]
    used = [{one.dataset.name: one.dataset.digest for one in run.inputs.dataset_inputs} for run in (whole, part)]
    assert {name for name in used[0] | used[1] if used[0].get(name) != used[1].get(name)} == {"morph hills"}
    assert set(used[1]) == {"raw hills", "hills", "raw dots", "dots", "morph hills"}

    folders = [top / run.info.artifact_uri for run in (whole, part)]
    at_the_top = [{path.name for path in folder.iterdir() if path.is_file()} for folder in folders]
    fixed = {
        "edit.hills.png", "evaluate.hills.png", "morph.hills.mp4", "morph.hills.strip.png", "sample.dots.png",
        "sample.hills.png",
    }  # fmt: skip
    assert at_the_top == [fixed, fixed], "the only ones that Compare shows"
    for name, made in (("morph.hills.strip.png", "data/morphs/hills/strip.png"),
                       ("sample.dots.png", "reports/samples/dots.png")):  # fmt: skip
        assert (folders[1] / name).read_bytes() == (project / made).read_bytes()

    tags = whole.data.tags
    assert sorted(tags["stages.ran"].split(", ")) == sorted(STAGES) and tags["stages.not_run"] == ""
    tags = part.data.tags
    assert tags["stages.ran"] == "check, morph@hills, evaluate@hills, report"
    unneeded = {f"{stage}@{key}" for stage in ("prepare", "train", "sample") for key in ("dots", "hills")}
    assert set(tags["stages.not_run"].split(", ")) == {"styles", "edit@hills"} | unneeded

    # What the stages log of their own params is what every parent carries: else the two would not agree.
    for run in runs:
        if run.data.tags.get("mlflow.parentRunId") == whole.info.run_id:
            kind, _, key = run.info.run_name.partition("@")
            flat = {name: text for name, text in run.data.params.items() if not name.startswith("base.")}
            above = {name: text for name, text in whole.data.params.items() if name.startswith(f"{kind}.{key}.")}
            assert {f"{kind}.{key}.{name.removeprefix(f'{kind}.')}": text for name, text in flat.items()} == above


def wrong_params(project: Path) -> str:
    edit(project / "params.yaml", lambda text: with_values(text, {"train.rank": 0}))
    return "params.yaml: train.rank: found 0."


def wrong_dataset(project: Path) -> str:
    (project / "data/raw/hills/red hill.png").write_bytes(b"")
    return "data/raw/hills/metadata.jsonl:1: 'red hill.png': the file is empty."


def wrong_keyframe(project: Path) -> str:
    edit(project / "params.yaml", lambda text: text.replace("[red hill.png, ", "[red hil.png, "))
    return "params.yaml: morphs.hills.keyframes.0: 'red hil.png' is not in the set hills."


def wrong_base(project: Path) -> str:
    weights = project / "models/pocket/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return "unet/diffusion_pytorch_model.safetensors: cut off or damaged"


@pytest.mark.parametrize("spoil", [wrong_params, wrong_dataset, wrong_keyframe, wrong_base])
def test_a_mistake_stops_at_check_with_every_result_in_place(
    project: Path, morphline: Path, spoil: Callable[[Path], str]
) -> None:
    before = made(project)
    message = spoil(project)
    answer = dvc(project, morphline, "repro")
    assert answer.code != 0 and answer.ran == ["check"]
    assert "morphline check: 1 problem(s)" in answer.said and message in answer.said
    assert "Traceback" not in answer.said
    assert made(project) == before
    git(project, "checkout", "-q", ".")
    answer = dvc(project, morphline, "repro")
    assert (answer.ran, answer.code) == ([], 0), "once fixed, all is as it was"
    assert made(project) == before
