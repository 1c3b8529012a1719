"""Names, values, digests and addresses: what is decided without a server."""

import ast
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.state import read_state
from pipeline.tracking import dashboard_command
from pipeline.tracking.adapters import base_reference
from pipeline.tracking.names import flatten, legal_key, model_name
from pipeline.tracking.store import database_of, server_uri
from tests.tracking.conftest import ROOT, section


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("loss/dawn", "loss/dawn"),
        ("train@alps", "train_x40_alps"),
        ("loss/dawn (1) ü", "loss/dawn _x28_1_x29_ ü"),
        ("großer See, 語、猫 كلب", "großer See_x2c_ 語_x3001_猫 كلب"),
        ("🐈 cat", "_x1f408_ cat"),
        ("../../etc", "_x2e_./_x2e_./etc"),
        ("/a//b/", "_x2f_a_x2f_/b_x2f_"),
        ("a_x28_", "a_x5f_x28_"),
        ("", "_x_"),
    ],
)
def test_keys_are_made_legal(name: str, key: str) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    assert legal_key(name) == key
    _validate_metric_name(legal_key(name))
    _validate_param_name(legal_key(name))


def test_two_names_never_give_one_key() -> None:
    """Every key leads back to its name, also of names that look like keys; and MLflow takes all of them."""
    from mlflow.utils.validation import _validate_logged_model_name, _validate_metric_name

    def name_of(key: str) -> str:
        return "" if key == "_x_" else re.sub(r"_x([0-9a-f]+)_", lambda found: chr(int(found[1], 16)), key)

    for letters in itertools.product("./_x2(語、", repeat=5):
        name = "".join(letters)
        key = legal_key(name)
        assert name_of(key) == name == name_of(model_name(name)), name
        _validate_metric_name(key)
        _validate_logged_model_name(model_name(name))
    assert legal_key("語、猫") != legal_key("語。猫"), "captions of two pictures"


def test_long_keys_stay_distinct() -> None:
    one, other = legal_key("a" * 300), legal_key("a" * 299 + "b")
    assert len(one) == len(other) == 250
    assert one != other


def test_model_names_escape_what_mlflow_rejects() -> None:
    assert model_name("alps-dawn.1: 'ü'") == "alps-dawn_x2e_1_x3a_ _x27_ü_x27_"


def test_params_are_flattened_with_dots() -> None:
    nested = {"a": {"b": {"c": 1.5}, "d": None}, "e": (1, 2), "f": True, "g": "text", "h": {}}
    assert flatten(nested) == {"a.b.c": "1.5", "a.d": "null", "e": "[1, 2]", "f": "true", "g": "text", "h": "{}"}


def test_a_long_param_is_cut_with_a_note() -> None:
    text = flatten({"captions": "x" * 7000})["captions"]
    assert len(text) == 6000
    assert text.endswith("x ... [cut: 7000 characters in all]")


def test_the_server_is_named_by_the_environment_then_the_params(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server_uri(section(None)) is None
    assert server_uri(section("http://team:5000")) == "http://team:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other:5000")
    assert server_uri(section("http://team:5000")) == "http://other:5000"
    assert database_of(section("http://team:5000")) == project / "mlflow.db", "which has every run, server or not"


def test_the_database_is_the_projects_or_where_it_is_pointed_to(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert database_of(section(None)) == project / "mlflow.db"
    monkeypatch.setenv("MORPHLINE_TRACKING_FOLDER", "/local/disk")
    assert database_of(section(None)) == database_of(section("http://team:5000")) == Path("/local/disk/mlflow.db")
    assert database_of(section("sqlite:////other/runs.db")) == Path("/other/runs.db")
    assert server_uri(section("sqlite:////other/runs.db")) is None


def test_experiments_in_a_copy_share_the_main_dashboard(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dvc exp run --temp` works in a copy, with DVC_ROOT at the main checkout."""
    copy = project / ".dvc/tmp/exps/abc"
    copy.mkdir(parents=True)
    (copy / "params.yaml").write_text("train: {rank: 2}\n")
    main = read_state()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(project))
    assert database_of(section(None)) == project / "mlflow.db"
    assert read_state().digest != main.digest, "the state is that of the copy"


def test_the_dashboard_always_opens_the_projects_database(project: Path) -> None:
    command, folder = dashboard_command(section("http://team:5000"), port=5005)
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options["--host"] == "127.0.0.1"
    assert options["--port"] == "5005"
    assert options["--backend-store-uri"] == f"sqlite:///{project}/mlflow.db"
    assert options["--artifacts-destination"] == "mlartifacts" and folder == project


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
