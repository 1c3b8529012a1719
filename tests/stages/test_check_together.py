"""What `check` says of values that are right by themselves, and do not go with the base or with each other."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from diffusers import AutoencoderKL
from typer.testing import CliRunner

from pipeline import refiner
from pipeline.cli import app
from pipeline.errors import Problem
from tests.project import edit, with_entries, with_values
from tests.stages.test_check import checked


def pin(project: Path) -> None:
    """The base as it is now."""
    (problem,) = checked()
    digest = problem.rpartition("revision: ")[2].rstrip("`.")
    edit(project / "params.yaml", lambda text: with_values(text, {"base.revision": digest}))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_noise_of_pure_noise_says_nothing_of_a_picture(project: Path, spacing: str) -> None:
    """Divided by how much of the picture is left, which is zero: NaN in samples and in trainings."""
    config = project / "bases/tiny/scheduler/scheduler_config.json"
    whole = json.loads(config.read_text())
    config.write_text(json.dumps(whole | {"rescale_betas_zero_snr": True, "timestep_spacing": spacing}))
    pin(project)
    (problem,) = checked()
    assert problem.startswith("bases/tiny/scheduler/scheduler_config.json: rescale_betas_zero_snr is true, and predict")


def test_pictures_end_where_latents_do(project: Path) -> None:
    vae = AutoencoderKL(
        block_out_channels=(4,) * 5,
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
        latent_channels=4,
        norm_num_groups=4,
    )
    vae.save_pretrained(project / "bases/tiny/vae")
    pin(project)
    edit(project / "params.yaml", lambda text: with_values(text, {"prepare.width": 72, "prepare.height": 88}))
    assert checked() == [
        f"params.yaml: sets.{key}: prepare.{name}: {side} pixels, and a latent of the base is 16 wide. "
        f"Write {side - 8}, or another multiple of 16."
        for key in ("hills", "dots")
        for name, side in (("width", 72), ("height", 88))
    ]
    edit(project / "params.yaml", lambda text: with_values(text, {"prepare.width": 64, "prepare.height": 96}))
    assert CliRunner().invoke(app, ["check"]).exit_code == 0


def test_consistency_needs_as_many_timesteps_as_it_goes_over(project: Path) -> None:
    config = project / "bases/tiny/scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_train_timesteps": 20}))
    pin(project)
    values = {"sample.solver": "consistency", "sample.steps": 4, "sample.fresh_noise": 0.0, "sample.guidance": 1.0}
    edit(project / "params.yaml", lambda text: with_values(text, values))
    said = "sample.solver: consistency, which goes over 50 timesteps, and the base's schedule has 20. Write another."
    assert [problem for problem in checked() if "50 timesteps" in problem] == [
        f"params.yaml: sets.{key}: {said}" for key in ("hills", "dots")
    ]


@pytest.mark.parametrize(("scale", "adapters", "acting"), [(1.0, "{}", True), (0.0, "{}", False), (0.0, "", True)])
def test_the_refiner_is_told_of_all_that_acts_in_the_bases_steps(
    project: Path, monkeypatch: pytest.MonkeyPatch, scale: float, adapters: str, acting: bool
) -> None:
    """A refiner that takes all steps would leave a ControlNet without any, as it would adapters."""
    told: list[Mapping[str, refiner.Asked]] = []

    def asked(section: object, base: object, steps: Mapping[str, refiner.Asked]) -> list[Problem]:
        told.append(steps)
        return []

    monkeypatch.setattr(refiner, "find_refiner_problems", asked)
    control = "source: x, revision: null, sigma: 0.0, low: 0.4, high: 0.8, start: 0.0, end: 1.0"
    entry = f"set: hills, adapters: {adapters or '{dots: 1.0}'}, edit: {{control: {{{control}, scale: {scale}}}}}"
    edit(project / "params.yaml", lambda text: with_entries(text, "edits", f"  hills: {{{entry}}}\n"))
    checked()
    assert told[0]["edits.hills: edit.steps"].needs_base is acting


@pytest.mark.parametrize(
    ("values", "steps", "refused"),
    [
        (
            "start: 0.0, end: 0.5",
            "steps: 2, strength: 0.7, start: noise",
            "of the steps taken (1) none lies betw",
        ),
        ("start: 0.45, end: 0.55", "steps: 20, strength: 0.7, start: noise", "of the steps taken (14) none lies betw"),
        ("start: 0.0, end: 0.5", "steps: 4, strength: 0.5, start: noise", ""),
        ("start: 0.45, end: 0.55", "steps: 2, strength: 0.0, start: noise", ""),
    ],
)
def test_a_control_that_has_no_step_is_refused(project: Path, values: str, steps: str, refused: str) -> None:
    control = f"source: nowhere, revision: null, sigma: 0.0, low: 0.4, high: 0.8, scale: 1.0, {values}"
    entry = f"  hills: {{set: hills, adapters: {{}}, edit: {{{steps}, control: {{{control}}}}}}}\n"
    edit(project / "params.yaml", lambda text: with_entries(text, "edits", entry))
    found = [problem for problem in checked() if "edit.control.start" in problem]
    assert len(found) == bool(refused) and all(refused in problem for problem in found)
