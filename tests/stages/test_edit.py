"""The stages `styles` and `edit`: what they write, what a control changes, what `check` refuses of edits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.stages import edit as stage
from pipeline.stages import prepare, styles, train
from tests.project import contents, edit, with_entries, with_values, write_rows
from tests.stages.test_check import checked
from tests.stages.test_sample import cells
from tests.tiny import build_tiny, section

NAMES = ("red hill", "großer See", "blue")


def with_edits(project: Path, entries: str) -> None:
    edit(project / "params.yaml", lambda text: with_entries(text, "edits", entries))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def add_control(project: Path, seed: int | None) -> str:
    """A ControlNet for the project's base in `controls/edges`, and the digest that pins it."""
    unet = UNet2DConditionModel.from_pretrained(project / "bases/tiny/unet")
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    if seed is not None:
        torch.manual_seed(seed)
        for weight in net.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.5)
    net.save_pretrained(project / "controls/edges")
    values = "source: controls/edges, revision: null, sigma: 0.0, low: 0.4, high: 0.8, scale: 1.0, start: 0.0, end: 1.0"
    with_edits(project, f"  hills: {{set: hills, adapters: {{}}, edit: {{strength: 1.0, control: {{{values}}}}}}}\n")
    (problem,) = checked()
    assert problem.startswith("params.yaml: edits.hills: edit.control.revision: a ControlNet must be pinned.")
    digest = problem.rpartition("revision: ")[2].rstrip("`.")
    edit(project / "params.yaml", lambda text: text.replace("edges, revision: null", f"edges, revision: {digest}"))
    assert CliRunner().invoke(app, ["check"]).exit_code == 0
    return digest


def test_an_edit_is_a_folder_for_each_scale_a_sheet_a_curve_and_its_facts(ran: Path) -> None:
    folder = ran / "data/edits/hills"
    files = {f"{scale}/{name}.png" for scale in (0, 1) for name in NAMES}
    assert set(contents(folder)) == files | {"sheet.png", "curve.png", "edit.json"}
    facts = json.loads((folder / "edit.json").read_text(encoding="utf-8"))
    assert facts["adapters"] == {"dots": 1.0, "hills/blue": -0.5} and facts["steps_taken"] == 1
    assert [picture["file_name"] for picture in facts["pictures"]] == [f"{name}.png" for name in NAMES]
    assert [row["scale"] for row in facts["figures"]] == [0, 1]
    assert all(-1 <= row["edges_kept"] <= 1 and row["style_distance"] > 0 for row in facts["figures"])
    assert all(row["style_strangeness"] > 0 for row in facts["figures"])
    shown = cells(folder / "sheet.png", rows=3, columns=3)
    for row, name in enumerate(NAMES):
        assert np.array_equal(shown[row][0], pixels(ran / f"data/prepared/hills/{name}.png"))
        for column, scale in ((1, 0), (2, 1)):
            assert np.array_equal(shown[row][column], pixels(folder / f"{scale}/{name}.png"))
        assert not np.array_equal(shown[row][1], shown[row][2]), "the adapters do nothing"


def test_the_same_edit_is_made_again(made: Path) -> None:
    before = contents(made / "data/edits")
    stage.run("hills")
    assert contents(made / "data/edits") == before


def test_strength_0_is_the_autoencoders_picture_whatever_the_adapters(made: Path) -> None:
    edit(made / "params.yaml", lambda text: with_values(text, {"edit.strength": 0.0}))
    stage.run("hills")
    for name in NAMES:
        assert np.array_equal(pixels(made / f"data/edits/hills/0/{name}.png"),
                              pixels(made / f"data/edits/hills/1/{name}.png"))  # fmt: skip


def test_captions_and_noise_change_what_is_made(made: Path) -> None:
    def edited(values: dict[str, object]) -> np.ndarray:
        edit(made / "params.yaml", lambda text: with_values(text, values))
        stage.run("hills")
        return pixels(made / "data/edits/hills/1/blue.png")

    results = [
        edited({"edit.caption": "a blue lake", "edit.strength": 1.0}),
        edited({"edit.suffix": "', a red lake'"}),
        edited({"edit.start": "noise"}),
        edited({"edit.seed": 5}),
    ]
    assert all(not np.array_equal(one, two) for one, two in zip(results, results[1:], strict=False))


def test_styles_change_with_the_adapters_and_pictures_that_an_edit_uses(made: Path) -> None:
    def noted() -> bytes:
        styles.run()
        return (made / "data/styles/hills.json").read_bytes()

    before = noted()
    assert before == (made / "data/styles/hills.json").read_bytes() == noted()
    folder = made / "models/adapters/hills"
    shutil.copy(folder / "großer See.safetensors", folder / "red hill.safetensors")
    assert noted() == before, "an adapter that no edit names"
    shutil.copy(folder / "großer See.safetensors", folder / "blue.safetensors")
    after = noted()
    assert after != before
    shutil.copy(made / "data/prepared/dots/d0.png", made / "data/prepared/dots/d1.png")
    assert noted() != after


def test_a_file_from_elsewhere_is_an_adapter_too(made: Path) -> None:
    """kohya's keys, as other programs write them: the same edit as by the set that the file was exported from."""
    from pipeline.commands import export

    folder = made / "models/loras"
    export.run("dots", folder, False)
    (file,) = folder.iterdir()
    with_edits(made, "  hills: {set: hills, adapters: {dots: 1.0}, edit: {strength: 1.0}}\n")
    styles.run()
    stage.run("hills")
    before, noted = pixels(made / "data/edits/hills/1/blue.png"), (made / "data/styles/hills.json").read_bytes()
    with_edits(made, f"  hills: {{set: hills, adapters: {{{file.name}: 1.0}}, edit: {{strength: 1.0}}}}\n")
    assert CliRunner().invoke(app, ["check"]).exit_code == 0
    styles.run()
    stage.run("hills")
    after = pixels(made / "data/edits/hills/1/blue.png")
    assert np.abs(after.astype(int) - before).max() <= 1 and (made / "data/styles/hills.json").read_bytes() != noted
    file.write_bytes(file.read_bytes()[:-8])
    (problem,) = checked()
    assert problem.startswith(f"params.yaml: edits.hills.adapters: models/loras/{file.name}: ")
    file.unlink()
    (problem,) = checked()
    where = f"params.yaml: edits.hills.adapters: models/loras/{file.name}"
    assert problem == f"{where}: the file is missing. Put it there, or correct its name."


def test_a_project_without_edits(made: Path) -> None:
    with_edits(made, "")
    styles.run()
    assert list((made / "data/styles").iterdir()) == []


def add_masks(raw: Path) -> None:
    """Masks that leave the right half of each picture to be changed."""
    rows = [json.loads(line) for line in (raw / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        with Image.open(raw / row["file_name"]) as picture:
            mask = np.zeros((picture.height, picture.width), np.uint8)
        mask[:, mask.shape[1] // 2 :] = 255
        row["mask"] = f"only right {number}.png"
        Image.fromarray(mask).save(raw / row["mask"])
    write_rows(raw, rows)


def test_a_base_that_fills_holes_trains_and_edits_within_masks_and_makes_no_morphs(project: Path) -> None:
    shutil.rmtree(project / "bases/tiny")
    build_tiny(takes=9).save_pretrained(project / "bases/tiny")
    edit(
        project / "bases/tiny/model_index.json",
        lambda text: text.replace("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"),
    )
    digest = str(section(project / "bases/tiny").revision)
    edit(project / "params.yaml", lambda text: with_values(text, {"base.revision": digest}))
    (problem,) = checked()
    assert problem.startswith("params.yaml: base.source: a base made for inpainting, which makes no morphs (")
    edit(project / "params.yaml", lambda text: with_entries(text, "morphs", ""))
    add_masks(project / "data/raw/hills")
    with_edits(project, "  hills: {set: hills, adapters: {hills/blue: 1.0}, edit: {within_masks: true}}\n")
    assert CliRunner().invoke(app, ["check"]).exit_code == 0
    prepare.run("hills")
    train.run("hills")
    styles.run()
    stage.run("hills")
    for name in NAMES:
        picture, edited = (pixels(project / f"data/{part}/{name}.png") for part in ("prepared/hills", "edits/hills/1"))
        assert np.array_equal(edited[:, :31], picture[:, :31])
        assert not np.array_equal(edited[:, 33:], picture[:, 33:])


def test_within_masks_everything_else_is_the_picture_itself(made: Path) -> None:
    raw = made / "data/raw/hills"
    with_edits(made, "  hills: {set: hills, adapters: {}, edit: {strength: 1.0, within_masks: true}}\n")
    (problem,) = checked()
    assert problem.startswith("params.yaml: edits.hills: edit.within_masks: 3 of the set's pictures have no mask")
    add_masks(raw)
    assert CliRunner().invoke(app, ["check"]).exit_code == 0
    before = {name: pixels(made / f"data/prepared/hills/{name}.png") for name in NAMES}
    prepare.run("hills")
    stage.run("hills")
    for row, name in zip(cells(made / "data/edits/hills/sheet.png", rows=3, columns=3), NAMES, strict=True):
        picture, mask, edited = row
        assert np.array_equal(picture, before[name]), "a mask changes nothing of the prepared picture"
        assert (mask[:, :31] == 0).all() and (mask[:, 33:] == 255).all()
        assert np.array_equal(edited[:, :31], picture[:, :31])
        assert not np.array_equal(edited[:, 33:], picture[:, 33:])
    Image.fromarray(mask[:20]).save(raw / "only right 1.png")
    (problem,) = checked()
    assert "the mask 'only right 1.png' has 64x20 pixels, the picture" in problem
    with pytest.raises(UserError, match="only right 1.png: 64x20 pixels"):
        prepare.run("hills")
    (raw / "only right 1.png").unlink()
    (problem,) = checked()
    assert "the mask 'only right 1.png' is missing" in problem
    (raw / "only right 1.png").mkdir()
    (problem,) = checked()
    assert "the mask 'only right 1.png' is not a file" in problem


@pytest.mark.parametrize("seed", [None, 3])
def test_control_shows_its_edges_and_changes_nothing_until_it_is_trained(made: Path, seed: int | None) -> None:
    with_edits(made, "  hills: {set: hills, adapters: {}, edit: {strength: 1.0}}\n")
    stage.run("hills")
    plain = {name: pixels(made / f"data/edits/hills/1/{name}.png") for name in NAMES}
    add_control(made, seed)
    stage.run("hills")
    for row, name in zip(cells(made / "data/edits/hills/sheet.png", rows=3, columns=3), NAMES, strict=True):
        assert set(np.unique(row[1])) <= {0, 255}
        assert np.array_equal(row[2], plain[name]) == (seed is None)
    facts = json.loads((made / "data/edits/hills/edit.json").read_text(encoding="utf-8"))
    assert [(row["style_distance"], row["style_strangeness"]) for row in facts["figures"]] == [(None, None)]


def test_a_controlnet_that_changed_is_refused(made: Path) -> None:
    add_control(made, None)
    weights = made / "controls/edges/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\x01\x02")
    (problem,) = checked()
    assert problem.startswith("params.yaml: edits.hills: edit.control.revision: controls/edges has changed.")
    weights.write_bytes(weights.read_bytes()[:-2])
    (problem,) = checked()
    assert "cut off or damaged" in problem


def test_a_controlnet_of_another_width_is_refused(made: Path) -> None:
    add_control(made, None)
    path = made / "controls/edges/config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "cross_attention_dim": 24}), encoding="utf-8")
    (problem,) = checked()
    assert "cross_attention_dim is 24, the base's 16" in problem
    path.write_text(json.dumps({**config, "conditioning_channels": 4}), encoding="utf-8")
    (problem,) = checked()
    assert "its weights do not fit config.json: controlnet_cond_embedding.conv_in.weight (4x3x3x3, by" in problem


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("set: hils, adapters: {}, edit: {}", ".set: there is no set 'hils'"),
        ("set: hills, adapters: {dot: 1.0}, edit: {}", ".adapters: dot: there is no set 'dot'"),
        (
            "set: hills, adapters: {dots/d1: 1.0}, edit: {}",
            ".adapters: 'dots/d1': the set dots has one adapter",
        ),
        ("set: hills, adapters: {hills: 1.0}, edit: {}", ".adapters: 'hills': the set hills has an adapter for each"),
        ("set: hills, adapters: {hills/bleu: 1.0}, edit: {}", ".adapters: 'hills/bleu': the set hills has no such"),
        ("set: hills, adapters: {}, edit: {strength: 0.2}", ": edit.strength: 0.2 of 2 steps is none at all"),
        ("set: hills, adapters: {}, edit: {strength: 1.5}", ".edit.strength: found 1.5"),
        ("set: hills, adapters: {}, edit: {caption: " + "hill " * 80 + "}", ": edit.caption: a caption has"),
        (
            "set: hills, adapters: {}, edit: {suffix: " + "hill " * 80 + "}",
            ": edit.suffix: a caption with the suffix has",
        ),
        ("set: hills, adapters: {}, edit: {negative: " + "hill " * 80 + "}", ": edit.negative: the caption has 82"),
        (
            "set: hills, adapters: {}, edit: {scales: [1.0, 1.0]}",
            ".edit.scales: found [1.0, 1.0]. It should differ from",
        ),
        ("set: hills, adapters: {}", ".edit: the key is missing"),
    ],
)
def test_what_does_not_go_together_is_refused(project: Path, entry: str, expected: str) -> None:
    with_edits(project, f"  hills: {{{entry}}}\n")
    (problem,) = checked()
    assert problem.startswith(f"params.yaml: edits.hills{expected}")


def test_a_control_without_a_folder_or_in_the_wrong_order_is_refused(project: Path) -> None:
    values = "source: nowhere, revision: null, sigma: 0.0, low: 0.9, high: 0.8, scale: 1.0, start: 0.5, end: 0.5"
    with_edits(project, f"  hills: {{set: hills, adapters: {{}}, edit: {{control: {{{values}}}}}}}\n")
    assert [problem.split(": ")[2] for problem in checked()] == [
        "edit.control.low", "edit.control.start", "edit.control.source",
    ]  # fmt: skip
