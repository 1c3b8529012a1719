"""What Git and DVC say of a checkout: its state, digests of its data, the stages of its lock."""

from pathlib import Path

import pytest

from pipeline.state import dataset_digest, locked_stages, read_state
from tests.tracking.conftest import git
from tests.tracking.conftest import project as project  # the fixture


def test_dataset_digest_is_that_of_the_stage_which_makes_it(project: Path) -> None:
    assert dataset_digest(Path("data/prepared/alps")) == "0123456789abcdef0123456789abcdef.dir"


@pytest.mark.parametrize("digest", [f"{'3' * 32}.dir", "0" * 30 + "12", "1e" + "3" * 30])
def test_dataset_digest_of_a_dvc_file(project: Path, digest: str) -> None:
    """Also of one that could be read as a number."""
    raw = project / "data/raw"
    raw.mkdir(parents=True)
    (project / "data/raw.dvc").write_text(f"outs:\n- {{md5: {digest}, path: raw}}\n")
    assert dataset_digest(raw) == digest


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
