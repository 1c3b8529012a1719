"""dvc.yaml says what is true: each stage declares the code and the params that it really uses, and no more."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.params import load_params
from tests.declarations import EXEMPT, ROOT, all_imports, params_read

PIPELINE, MODELS = (
    YAML(typ="safe").load((ROOT / name).read_text(encoding="utf-8"))["stages"]
    for name in ("dvc.yaml", "models/dvc.yaml")
)
STAGES: dict[str, dict[str, Any]] = {name: stage.get("do", stage) for name, stage in {**PIPELINE, **MODELS}.items()}
FILES = {name: Path("pipeline/stages") / f"{name}.py" for name in STAGES}


def declared_code(stage: str) -> list[Path]:
    return [Path(dep) for dep in STAGES[stage]["deps"] if dep.startswith("pipeline")]


def test_every_stage_of_the_plan_is_there_and_says_what_it_does() -> None:
    planned = ["check", "prepare", "train", "sample", "morph", "evaluate", "styles", "edit", "report"]
    assert list(PIPELINE) == planned
    assert all(stage["desc"] for stage in STAGES.values())
    assert set(MODELS) == {"pocket", "controlnet"} and all(stage["frozen"] is True for stage in MODELS.values())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_every_module_that_it_imports(stage: str) -> None:
    declared = declared_code(stage)
    missing = {
        str(file) for file in all_imports(FILES[stage]) if not any(d == file or d in file.parents for d in declared)
    }
    assert not missing, f"add to stages.{stage}.deps: {sorted(missing)}"


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "check" and name not in MODELS])
def test_a_stage_declares_no_module_that_it_does_not_import(stage: str) -> None:
    """Else it reruns for nothing; a folder is declared only where all of it is imported. `check` takes everything on
    purpose; those of models/dvc.yaml are frozen."""
    used, idle = all_imports(FILES[stage]), []
    for declared in declared_code(stage):
        files = (ROOT / declared).rglob("*.py") if (ROOT / declared).is_dir() else [ROOT / declared]
        code = {file.relative_to(ROOT) for file in files if file.suffix == ".py" and file.read_text().strip()}
        idle += sorted(str(file) for file in code - used)
    assert not idle, f"remove from stages.{stage}.deps, or declare files instead of a folder: {idle}"


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "check"])
def test_a_stage_declares_exactly_the_params_that_it_reads(stage: str) -> None:
    declared = set(STAGES[stage]["params"])
    read = params_read(FILES[stage])
    covered = {key for key in read if any(key == d or key.startswith(d + ".") for d in declared)}
    assert read == covered, f"add to stages.{stage}.params: {sorted(read - covered)}"
    idle = {d for d in declared if not any(key == d or key.startswith(d + ".") for key in read)}
    assert not idle, f"remove from stages.{stage}.params: {sorted(idle)}"


def test_check_declares_everything_that_decides_a_result_and_nothing_else() -> None:
    sections = set(type(load_params(ROOT / "params.yaml")).model_fields) - {"machine", "tracking"}
    assert set(STAGES["check"]["params"]) == sections
    assert declared_code("check") == [Path("pipeline")]


@pytest.mark.parametrize("stage", ["check", "prepare", "train", "sample", "morph", "edit"])
def test_what_takes_long_is_kept_in_the_run_cache(stage: str) -> None:
    """DVC keeps no record of a stage with an uncached output that is neither plot nor metric: then nobody shares it."""
    uncached = [out for out in STAGES[stage].get("outs", ()) if isinstance(out, dict)]
    assert not uncached, f"move to stages.{stage}.plots or .metrics: {uncached}"


def test_every_stage_but_the_frozen_one_waits_for_check() -> None:
    def outputs(stage: str) -> set[str]:
        kinds = [STAGES[stage].get(kind, ()) for kind in ("outs", "plots")]
        return {out if isinstance(out, str) else next(iter(out)) for kind in kinds for out in kind}

    def made(stage: str) -> set[str]:
        folders = {str(parent) for out in outputs(stage) for parent in Path(out).parents}
        return {name.replace("item.set", "key") for name in outputs(stage) | folders}

    waiting = {"check"}
    for stage in ("prepare", "train", "sample", "morph", "evaluate", "styles", "edit", "report"):
        needs = {dep.replace("item.set", "key") for dep in STAGES[stage]["deps"]}
        assert any(needs & made(earlier) for earlier in waiting), f"stages.{stage} may run before check"
        waiting.add(stage)


def test_machine_and_tracking_are_nobodys_params() -> None:
    declared = {key.split(".")[0] for stage in STAGES.values() for key in stage.get("params", ())}
    assert not declared & {"machine", "tracking"}


def test_only_keys_reach_a_command() -> None:
    for stage in STAGES.values():
        assert "${" not in stage["cmd"].replace("${key}", "")


def test_what_is_exempt_exists() -> None:
    assert all((ROOT / item).exists() for item in EXEMPT)


def test_the_test_itself_notices_a_missing_declaration(monkeypatch: pytest.MonkeyPatch) -> None:
    deps = [dep for dep in STAGES["evaluate"]["deps"] if not dep.endswith("solver.py")]
    monkeypatch.setitem(STAGES["evaluate"], "deps", deps)
    with pytest.raises(AssertionError, match=r"solver\.py"):
        test_a_stage_declares_every_module_that_it_imports("evaluate")
    monkeypatch.setitem(STAGES["evaluate"], "deps", [*deps, "pipeline/sampling"])
    with pytest.raises(AssertionError, match=r"instead of a folder: \[.*'pipeline/sampling/guidance\.py'"):
        test_a_stage_declares_no_module_that_it_does_not_import("evaluate")
    monkeypatch.setitem(STAGES["morph"], "params", ["base", "morph"])
    with pytest.raises(AssertionError, match="morphs"):
        test_a_stage_declares_exactly_the_params_that_it_reads("morph")


def test_an_errors_words_about_a_users_picture_make_no_training_stale() -> None:
    for stage in ("train", "sample", "morph", "evaluate", "edit"):
        assert not [file for file in all_imports(FILES[stage]) if "pictures" in file.parts]
