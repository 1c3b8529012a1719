"""Names, values, digests and addresses: what is decided without a server."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.tracking import dashboard_command
from pipeline.tracking.adapters import base_reference
from pipeline.tracking.legal import flatten, legal_key, model_name
from pipeline.tracking.server import tracking_uri
from pipeline.tracking.state import dataset_digest, locked_stages, read_state, spool
from tests.tracking.conftest import ROOT, git, section


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("loss/dawn", "loss/dawn"),
        ("train@alps", "train.alps"),
        ("loss/dawn (1) ü", "loss/dawn _1_ _"),
        ("../../etc", "_etc"),
        ("/a//b/", "a/b"),
        ("", "_"),
    ],
)
def test_keys_are_made_legal(name: str, key: str) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    assert legal_key(name) == key
    _validate_metric_name(legal_key(name))
    _validate_param_name(legal_key(name))


def test_long_keys_stay_distinct() -> None:
    one, other = legal_key("a" * 300), legal_key("a" * 299 + "b")
    assert len(one) == len(other) == 250
    assert one != other


def test_model_names_lose_what_mlflow_rejects() -> None:
    assert model_name("alps-dawn.1: 'ü'") == "alps-dawn-1"


def test_params_are_flattened_with_dots() -> None:
    nested = {"a": {"b": {"c": 1.5}, "d": None}, "e": (1, 2), "f": True, "g": "text", "h": {}}
    assert flatten(nested) == {"a.b.c": "1.5", "a.d": "null", "e": "[1, 2]", "f": "true", "g": "text", "h": "{}"}


def test_a_long_param_is_cut_with_a_note() -> None:
    text = flatten({"captions": "x" * 7000})["captions"]
    assert len(text) == 6000
    assert text.endswith("x ... [cut: 7000 characters in all]")


def test_dataset_digest_is_that_of_the_stage_which_makes_it(project: Path) -> None:
    assert dataset_digest(Path("data/prepared/alps")) == "0123456789abcdef0123456789abcdef.dir"


def test_dataset_digest_of_a_dvc_file(project: Path) -> None:
    raw = project / "data/raw"
    raw.mkdir(parents=True)
    (project / "data/raw.dvc").write_text("outs:\n- {md5: 33333333333333333333333333333333.dir, path: raw}\n")
    assert dataset_digest(raw) == "33333333333333333333333333333333.dir"


def test_dataset_digest_of_a_folder_in_git_equals_dvcs_own(project: Path) -> None:
    """The expected digest was written by `dvc add` (3.67.1) for these two files."""
    (project / "raw/sub").mkdir(parents=True)
    (project / "raw/a.txt").write_text("hi\n")
    (project / "raw/sub/ünï b.txt").write_text("ho\n", encoding="utf-8")
    assert dataset_digest(Path("raw")) == "dae2fc3fbead784c520d0681c4a85323.dir"


def test_stages_of_the_lock_that_dvc_yaml_still_names(project: Path) -> None:
    assert locked_stages() == ["prepare@alps", "train@alps", "report"]


def test_state_is_the_commit_and_the_params(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = read_state()
    assert clean.commit == git(project, "rev-parse", "HEAD")
    assert (clean.branch, clean.subject, clean.edited) == ("main", "Paint the alps", ())
    assert clean.name == f"{clean.commit[:7]} Paint the alps"

    (project / "dvc.lock").write_text((project / "dvc.lock").read_text() + "# a stage ended\n")
    (project / "reports/index.html").write_text("made again")
    assert read_state() == clean, "what the pipeline itself writes is no edit and no new state"

    (project / "params.yaml").write_text("train: {rank: 4}\n")
    edited = read_state()
    assert edited.digest != clean.digest
    assert edited.edited == ("params.yaml",)
    assert edited.name == f"{clean.commit[:7]}+ Paint the alps"

    monkeypatch.setenv("DVC_EXP_NAME", "rank-4")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", clean.commit)
    assert read_state().name == "rank-4"
    assert read_state().digest not in (clean.digest, edited.digest)


def test_state_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "params.yaml").write_text("a: 1\n")
    state = read_state()
    assert (state.commit, state.name, state.edited) == ("", tmp_path.name, ())


def test_address_environment_then_params_then_the_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unset = section("x").model_copy(update={"uri": None})
    assert tracking_uri(unset) == f"sqlite:///{project}/mlflow.db"
    assert tracking_uri(section("http://team:5000")) == "http://team:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other:5000")
    assert tracking_uri(section("http://team:5000")) == "http://other:5000"


def test_experiments_in_a_copy_share_the_main_dashboard(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dvc exp run --temp` works in a copy, with DVC_ROOT at the main checkout."""
    copy = project / ".dvc/tmp/exps/abc"
    copy.mkdir(parents=True)
    (copy / "params.yaml").write_text("train: {rank: 2}\n")
    main = read_state()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(project))
    assert tracking_uri(section("x").model_copy(update={"uri": None})) == f"sqlite:///{project}/mlflow.db"
    assert spool() == project / ".work/tracking"
    assert read_state().digest != main.digest, "the state is that of the copy"


def test_dashboard_command_opens_the_database_or_the_server(project: Path) -> None:
    command = dashboard_command(section("x").model_copy(update={"uri": None}), port=5005)
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options["--host"] == "127.0.0.1"
    assert options["--port"] == "5005"
    assert options["--backend-store-uri"] == f"sqlite:///{project}/mlflow.db"
    assert options["--default-artifact-root"] == (project / "mlartifacts").as_uri()
    assert dashboard_command(section("http://team:5000"))[-1] == "http://team:5000"
    assert dashboard_command(section("http://team:5000/"), page="/#/runs")[-1] == "http://team:5000/#/runs"


def test_a_local_base_is_never_taken_for_a_hub_id(project: Path) -> None:
    (project / "models/pocket").mkdir(parents=True)
    assert base_reference("models/pocket") == "./models/pocket"
    assert base_reference("runwayml/stable-diffusion-v1-5") == "runwayml/stable-diffusion-v1-5"


def test_only_tracking_imports_mlflow_and_only_when_used() -> None:
    for path in (ROOT / "pipeline").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        if any(re.match(r"mlflow\b", name) for name in names):
            assert path.is_relative_to(ROOT / "pipeline/tracking"), path
    code = "import json, sys, pipeline.tracking; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"mlflow", "torch", "pandas"} & set(json.loads(answer.stdout))


def test_an_unusable_address_says_how_to_mend_it(project: Path) -> None:
    from pipeline.tracking import track

    with (
        pytest.raises(UserError, match=r"tracking server gopher://x.*tracking\.required"),
        track("check", section("gopher://x"), {}),
    ):
        pass
