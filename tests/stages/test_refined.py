"""The stages `sample` and `edit` with SDXL's refiner, and `check` of a project that has one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.stages import edit as edit_stage
from pipeline.stages import prepare, sample, styles, train
from tests.project import contents, edit, make_project, with_entries, with_values
from tests.stages.test_check import checked
from tests.stages.test_sample import cells
from tests.tiny import build_tiny_refiner, build_tiny_xl

EDITS = "  dots: {set: dots, adapters: {dots: 1.0}, edit: {guidance: 2.0, strength: 1.0}}\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, database: str) -> Path:
    """A project on an XL, with the adapter of a set, a refiner and a copy of the base at hand. Not to be changed."""
    folder = tmp_path_factory.mktemp("refined")
    build_tiny_xl().save_pretrained(folder / "base")
    values = {"sample.steps": 4, "edit.steps": 4, "machine.workers": 1, "train.steps": 2}
    project = make_project(folder / "project", folder / "base", database, values)
    shutil.copytree(folder / "base", project / "bases/same")
    build_tiny_refiner().save_pretrained(project / "bases/refiner")
    edit(project / "params.yaml", lambda text: with_entries(with_entries(text, "edits", EDITS), "morphs", ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        prepare.run("dots")
        train.run("dots")
        styles.run()
    return project


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    project = Path(shutil.copytree(trained, tmp_path / "project"))
    monkeypatch.chdir(project)
    return project


def refine(project: Path, source: str, start: float = 0.5) -> None:
    """As a user does it: `check` says what to write as its pin."""
    params = project / "params.yaml"
    values = {"refiner.source": source, "refiner.revision": "null", "refiner.from": start}
    edit(params, lambda text: with_values(text, values))
    (problem,) = checked()
    assert problem.startswith("params.yaml: refiner.revision: a base of your own must be pinned.")
    digest = problem.rpartition("revision: ")[2].rstrip("`.")
    edit(params, lambda text: with_values(text, {"refiner.revision": digest}))
    answer = CliRunner().invoke(app, ["check"])
    assert answer.exit_code == 0, answer.stderr


def made(project: Path) -> dict[str, bytes]:
    sample.run("dots")
    edit_stage.run("dots")
    return contents(project / "reports/samples") | contents(project / "data/edits/dots")


def test_the_base_as_its_own_refiner_changes_no_byte_and_another_changes_what_is_made(project: Path) -> None:
    before = made(project)
    facts = json.loads(before.pop("edit.json"))
    shown = cells(project / "reports/samples/dots.png", rows=2, columns=3)
    # Of the base alone: adapters have no part in the refiner's steps.
    edit(project / "params.yaml", lambda text: with_values(text, {"edit.scales": "[0]", "sample.weights": "[0]"}))
    alone = made(project)
    refine(project, "bases/same")
    same = made(project)
    told = json.loads(same.pop("edit.json"))
    alone.pop("edit.json")
    assert same == alone and facts["refiner"] is None
    assert told["refiner"]["from"] == 0.5 and told["refiner"]["digest"] == told["base"] == facts["base"]
    edit(project / "params.yaml", lambda text: with_values(text, {"edit.scales": "[0, 1]", "sample.weights": "[0, 1]"}))
    refine(project, "bases/refiner")
    refined = made(project)
    assert refined.keys() - {"edit.json"} == before.keys()
    assert all(refined[name] != before[name] for name in before)
    now = cells(project / "reports/samples/dots.png", rows=2, columns=3)
    for row, old in zip(now, shown, strict=True):
        assert np.array_equal(row[0], old[0]) and not np.array_equal(row[1], old[1])
        assert not np.array_equal(row[1], row[2]), "the adapter acts in the base's steps"


def test_check_tells_what_a_refiner_leaves_nothing_to_do(project: Path) -> None:
    refine(project, "bases/refiner")
    params = project / "params.yaml"
    edit(params, lambda text: with_values(text, {"refiner.from": 0.1}))
    problems = checked()
    assert len(problems) == 3 and all("all steps taken of 4 are the refiner's" in problem for problem in problems)
    edit(params, lambda text: with_values(text, {"refiner.from": 0.5}).replace("strength: 1.0", "strength: 0.5"))
    (problem,) = checked()
    assert problem.startswith("params.yaml: refiner.from: 0.5: all steps") and "(edits.dots: edit.steps)" in problem
    edit(params, lambda text: text.replace("{dots: 1.0}", "{}"))
    assert CliRunner().invoke(app, ["check"]).exit_code == 0
    edit(params, lambda text: with_values(text, {"sample.steps": 1000, "edit.steps": 2000}))
    assert [problem.split(": ")[1] for problem in checked()] == ["edit.steps"]


def test_a_refiner_without_an_xl_is_refused(project: Path, tiny_folders: dict[str, Path]) -> None:
    from tests.tiny import section

    refine(project, "bases/refiner")
    shutil.rmtree(project / "bases/tiny")
    shutil.copytree(tiny_folders["epsilon"], project / "bases/tiny")
    pinned = {"base.revision": section(tiny_folders["epsilon"]).revision}
    edit(project / "params.yaml", lambda text: with_values(text, pinned))
    (problem,) = checked()
    assert problem.startswith(
        "params.yaml: refiner.source: the base is a Stable Diffusion, and only Stable Diffusion XL"
    )
