"""What `check` says of objectives and of sampling in a few steps: each wrong combination in one message."""

import pytest

from pipeline.distillation import find_objective_problems, find_solver_problems
from pipeline.params import EditSpec, Params, load_params
from pipeline.sections import RefinerSection
from tests.declarations import ROOT

SHIPPED = load_params(ROOT / "params.yaml")


def with_train(key: str, **changes: object) -> Params:
    spec = SHIPPED.sets[key]
    changed = spec.model_copy(update={"train": spec.train.model_copy(update=changes)})
    return SHIPPED.model_copy(update={"sets": {**SHIPPED.sets, key: changed}})


def with_edit(**changes: object) -> Params:
    (key, spec), *_ = SHIPPED.edits.items()
    edit = spec.edit.model_copy(update={"solver": "consistency", "start": "noise", "steps": 4, **changes})
    changed: EditSpec = spec.model_copy(update={"edit": edit})
    return SHIPPED.model_copy(update={"edits": {key: changed}})


def said(params: Params) -> list[str]:
    return [str(problem) for problem in [*find_objective_problems(params), *find_solver_problems(params)]]


def test_what_goes_together_is_not_refused() -> None:
    assert said(SHIPPED) == []
    for objective in ("consistency", "smooth"):
        assert said(with_train("woodcut", objective=objective)) == []
    assert (
        said(with_train("alps", text_rate=0.1, gradient_checkpointing=True, guidance_from=9.0, guidance_to=2.0)) == []
    )
    assert said(with_edit()) == said(with_edit(steps=8)) == said(with_edit(strength=0.0)) == []


@pytest.mark.parametrize(
    ("key", "changes", "expected"),
    [
        ("alps", {"objective": "smooth"}, "alps: train.objective: smooth, of adapters of one picture each. Write `ad"),
        ("woodcut", {"objective": "consistency", "text_rate": 0.1}, "train.text_rate: 0.1, and the teacher of consist"),
        (
            "woodcut",
            {"objective": "consistency", "min_snr_gamma": 5.0},
            "train.min_snr_gamma: 5, and consistency",
        ),
        (
            "woodcut",
            {"objective": "consistency", "guidance_from": 3.0, "guidance_to": 2.0},
            "train.guidance_from: 3 lies above guidance_to. Write at most `guidance_to`.",
        ),
        (
            "woodcut",
            {"objective": "consistency", "patience": 3, "validate_every": 5},
            "train.patience: the error of consistency at fixed noise rises before it falls. Write null.",
        ),
        (
            "woodcut",
            {"objective": "smooth", "gradient_checkpointing": True},
            "train.gradient_checkpointing: smooth takes second derivatives",
        ),
    ],
)
def test_an_objective_that_cannot_be_trained_is_refused(key: str, changes: dict[str, object], expected: str) -> None:
    (problem,) = said(with_train(key, **changes))
    assert expected in problem


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"steps": 9},
            "edit.steps: 9 steps, and consistency takes at most 8 here. Write at most 8, or another solver.",
        ),
        ({"steps": 4, "strength": 0.05}, "edit.steps: 4 steps, and consistency takes at most 2 here"),
        ({"strength": 0.01}, "edit.strength: 0.01 is less than one jump of consistency. Write at least 0.02, or 0."),
        ({"start": "inversion"}, "edit.start: inversion, and consistency jumps: there is no way back"),
    ],
)
def test_an_edit_that_consistency_cannot_make_is_refused(changes: dict[str, object], expected: str) -> None:
    (problem,) = said(with_edit(**changes))
    assert expected in problem


def test_a_refiner_has_no_part_in_it() -> None:
    refiner = RefinerSection.model_validate({"source": "x", "revision": None, "from": 0.8})
    (problem,) = said(with_edit().model_copy(update={"refiner": refiner}))
    assert "edit.solver: consistency, and the refiner has no part in its jumps" in problem


def test_fresh_noise_is_refused_where_it_would_do_nothing() -> None:
    assert said(with_edit(fresh_noise=0.5)) == said(with_edit(solver="ddim", fresh_noise=1.0)) == []
    (problem,) = said(with_edit(solver="midpoint", fresh_noise=0.5))
    assert "edit.fresh_noise: 0.5, and midpoint draws none" in problem and "`solver: ddim`" in problem
    spec = SHIPPED.sets["woodcut"]
    sample = spec.sample.model_copy(update={"solver": "midpoint", "fresh_noise": 1.0})
    changed = {**SHIPPED.sets, "woodcut": spec.model_copy(update={"sample": sample})}
    (problem,) = said(SHIPPED.model_copy(update={"sets": changed}))
    assert "sets.woodcut: sample.fresh_noise: 1, and midpoint draws none" in problem
