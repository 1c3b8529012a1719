"""An adapter trained for consistency, from its training to samples and edits in a few steps by the base with it."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.adapters.lora import read_notes
from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.serving.package import contents_of, write_package
from pipeline.serving.service import Service
from pipeline.stages import edit as edit_stage
from pipeline.stages import prepare, sample, styles, train
from tests.project import contents, edit, with_entries, with_values
from tests.stages.test_check import checked

FILE = Path("models/loras/few.safetensors")
FRESH = ("sample.fresh_noise", "edit.fresh_noise")
EDITS = "  dots: {set: dots, adapters: {}, edit: {solver: consistency, start: noise, strength: 0.8, steps: 3}}\n"


@pytest.fixture
def distilled(project: Path) -> Path:
    """The project with such an adapter under its base, pinned as `check` says."""
    params = project / "params.yaml"
    edit(params, lambda text: with_values(text, {"train.objective": "consistency", "train.steps": 2}))
    (refused,) = checked()
    assert refused.startswith("params.yaml: sets.hills: train.objective: consistency, of adapters of one picture each.")
    prepare.run("dots")
    train.run("dots")
    FILE.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy("models/adapters/dots/set.safetensors", FILE)
    under = f"[{{file: {FILE}, digest: null, weight: 1.0}}]"
    edit(params, lambda text: with_values(text, {"train.objective": "denoise", "base.adapters": under}))
    (problem,) = checked()
    assert problem.startswith(
        "params.yaml: base.adapters.0.digest: it must be pinned. If the file is right, write `dig"
    )
    digest = problem.rpartition("digest: ")[2].rstrip("`.")
    edit(params, lambda text: text.replace("digest: null", f"digest: {digest}"))
    return project


def test_it_lies_under_samples_and_edits_and_what_is_trained_later_is_bound_to_it(distilled: Path) -> None:
    params = distilled / "params.yaml"
    before = read_notes(Path("models/adapters/dots/set.safetensors"))["base"]["digest"]
    train.run("dots")
    after = read_notes(Path("models/adapters/dots/set.safetensors"))["base"]["digest"]
    assert after.startswith(before) and after != before
    values = {"sample.solver": "consistency", "sample.steps": 3, "sample.guidance": 1.0}
    edit(params, lambda text: with_entries(with_values(text, values), "edits", EDITS))
    answer = CliRunner().invoke(app, ["check"])
    assert answer.exit_code == 0, answer.stderr
    assert "few.safetensors was trained for consistency" in answer.stderr  # the project has morphs
    styles.run()
    made = []
    for fresh in (1.0, 0.5, None):
        if fresh is not None:
            edit(params, lambda text, fresh=fresh: with_values(text, dict.fromkeys(FRESH, fresh)))
        sample.run("dots")
        edit_stage.run("dots")
        made.append([contents(distilled / folder) for folder in ("reports/samples", "data/edits/dots")])
    assert made[1] == made[2], "fresh noise must come of seeds alone"
    for all_fresh, half in zip(made[0], made[1], strict=True):
        assert [name for name in half if name.endswith(".png") and half[name] != all_fresh[name]]
    edit(params, lambda text: with_values(text, {"sample.solver": "midpoint", "base.adapters": "[]"}))
    answer = CliRunner().invoke(app, ["check"])
    assert "sample.fresh_noise: 0.5, and midpoint draws none" in answer.stderr and answer.exit_code == 1
    edit(params, lambda text: with_values(text, {"sample.fresh_noise": 0.0}))
    answer = CliRunner().invoke(app, ["check"])
    assert "without base.adapters: the base must be distilled itself" in answer.stderr


def test_a_served_model_takes_it_along(distilled: Path, tmp_path: Path) -> None:
    """The file is in the package, which needs nothing else of the project; and its samples are in few steps, too."""
    train.run("dots")
    values = {
        "sample.solver": "consistency", "sample.steps": 3, "sample.guidance": 1.0, "sample.fresh_noise": 0.0,
    }  # fmt: skip
    edit(distilled / "params.yaml", lambda text: with_values(text, values))
    folder = tmp_path / "package"
    folder.mkdir()
    params = load_params()
    write_package(contents_of(params, "train@dots"), folder)
    FILE.unlink()
    service = Service(folder)
    assert service.base.digest == read_notes(Path("models/adapters/dots/set.safetensors"))["base"]["digest"]
    asked = {"captions": ["a red hill"], "seed": 1}
    few = service.answer(asked)["pictures"]
    older = json.loads((folder / "package.json").read_text())
    assert older["sample"].pop("fresh_noise") == 0.0
    (folder / "package.json").write_text(json.dumps(older))
    assert Service(folder).package.sample.fresh_noise == 1.0
    assert Service(folder).answer(asked)["pictures"] != few
    of_ddim = {**older["sample"], "solver": "ddim"}
    (folder / "package.json").write_text(json.dumps({**older, "sample": of_ddim}))
    assert Service(folder).package.sample.fresh_noise == 0.0
    (folder / "package.json").write_text(json.dumps(older))
    assert few == service.answer(asked)["pictures"] and few != service.answer({**asked, "steps": 2})["pictures"]
    with pytest.raises(UserError, match="9 steps, and this model is sampled by consistency. Ask for at most 8."):
        service.answer({**asked, "steps": 9})


def test_an_adapter_of_the_base_alone_is_refused_on_the_base_with_another_under_it(distilled: Path) -> None:
    with pytest.raises(Exception, match="trained on bases/tiny .* not on this base"):
        sample.run("dots")


def test_a_morph_by_a_sampler_that_cannot_be_inverted_is_refused_by_name(project: Path) -> None:
    edit(project / "params.yaml", lambda text: with_values(text, {"morph.solver": "consistency"}))
    problems = checked()
    assert problems and all("cannot be inverted: use midpoint or ddim" in problem for problem in problems)
