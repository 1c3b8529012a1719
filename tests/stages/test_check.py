"""`check` reports all mistakes at once, each with its place and its fix, and changes nothing."""

import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.params import load_params
from pipeline.pictures import integrity, reading
from tests.project import DOTS, HILLS, contents, edit, paint, with_entries, with_values

LONG = "hill " * 80


def checked() -> list[str]:
    """Run `morphline check` on what is wrong with the project; returns its problems."""
    answer = CliRunner().invoke(app, ["check"])
    assert answer.exit_code == 1 and answer.stdout == ""
    first, *problems = answer.stderr.splitlines()
    assert first == f"morphline check: {len(problems)} problem(s)"
    assert "Traceback" not in answer.stderr and all(problem.startswith("  ") for problem in problems)
    return [problem.strip() for problem in problems]


def bomb(path: Path) -> None:
    """A PNG of 100 bytes whose header declares 900 million pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.fixture
def broken(project: Path) -> Path:
    """A project with one mistake of each kind in its sets and morphs."""
    raw = project / "data/raw/hills"
    for name in ("cut.png", "unlisted.png"):
        paint(raw / name, 7)
    (raw / "cut.png").write_bytes((raw / "cut.png").read_bytes()[:-60])
    (raw / "empty.png").write_bytes(b"")
    bomb(raw / "bomb.png")
    lines = [
        {"file_name": "red hill.png", "text": "a red hill"},
        {"file_name": "gone.png", "text": "a red hill"},
        {"file_name": "großer See.jpg"},
        {"file_name": "red hill.png", "text": "a red hill"},
        '{"file_name": "blue.png", "text": ',
        {"file_name": "cut.png", "text": "a red hill"},
        {"file_name": "empty.png", "text": "a red hill"},
        {"file_name": "bomb.png", "text": "a red hill"},
        {"file_name": "../dots/d0.png", "text": "a red hill"},
        {"file_name": "long.png", "text": LONG},
    ]
    paint(raw / "long.png", 8)
    text = "".join((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines)
    (raw / "metadata.jsonl").write_text(text, encoding="utf-8")
    edit(project / "params.yaml", lambda text: text.replace("[d3.png, d1.png]", "[d3.png, d9.png, d1.jpg]"))
    nowhere = "  nowhere: {adapter: set, prepare: {}, train: {}, sample: {}}\n"
    edit(project / "params.yaml", lambda text: text.replace("\nsets:\n", f"\nsets:\n{nowhere}"))
    return project


EXPECTED = {
    r"data/raw/hills/metadata\.jsonl:2: the picture 'gone\.png' is missing\. .+": "missing image",
    r"data/raw/hills/metadata\.jsonl:3: no caption\. Add the key 'text': .+": "row without caption",
    r"data/raw/hills/metadata\.jsonl:4: 'red hill\.png' has a row on line 1 already\. .+": "duplicate",
    r"data/raw/hills/metadata\.jsonl:5: not valid JSON \(.+\)\. .+": "bad JSON",
    r"data/raw/hills/metadata\.jsonl:6: 'cut\.png': corrupt or truncated picture .+": "truncated",
    r"data/raw/hills/metadata\.jsonl:7: 'empty\.png': the file is empty\. .+": "zero bytes",
    r"data/raw/hills/metadata\.jsonl:8: 'bomb\.png': 900 megapixels, more than the 100 allowed\. .+": "oversized",
    r"data/raw/hills/metadata\.jsonl:9: file_name '\.\./dots/d0\.png' leaves the folder\. .+": "leaving name",
    r"data/raw/hills/metadata\.jsonl:10: the caption has 82 tokens, the base reads 64\. .+ by 18 .+": "long caption",
    r"data/raw/hills/unlisted\.png: the picture has no row in metadata\.jsonl\. .+": "extra image",
    r"data/raw/nowhere: the folder is missing\. .+": "missing set",
    r"params\.yaml: morphs\.dots\.keyframes\.1: 'd9\.png' is not in the set dots\. .*d0\.png, d1\.png.*": "keyframe",
    r"params\.yaml: morphs\.dots\.keyframes\.2: 'd1\.jpg' is not in the set dots\. .+": "another keyframe",
}


def test_every_mistake_is_reported_at_once_with_its_place_and_its_fix(broken: Path) -> None:
    before = contents(broken, ".work")
    problems = checked()
    for pattern, kind in EXPECTED.items():
        assert [problem for problem in problems if re.fullmatch(pattern, problem)], (
            f"{kind} is not reported:\n{problems}"
        )
    assert len(problems) == len(EXPECTED), problems
    assert contents(broken, ".work") == before, "check changed something"


def test_the_mistakes_of_a_broken_base_are_reported_beside_those_of_the_sets(broken: Path) -> None:
    unet = broken / "bases/tiny/unet/diffusion_pytorch_model.safetensors"
    unet.write_bytes(unet.read_bytes()[:-100])
    (broken / "bases/tiny/scheduler/scheduler_config.json").unlink()
    before = contents(broken, ".work")
    problems = checked()
    assert [p for p in problems if re.match(r"\S*unet/diffusion_pytorch_model\.safetensors: cut off or damaged", p)]
    assert [p for p in problems if re.match(r"\S*scheduler/scheduler_config\.json: the file is missing", p)]
    # Without the base's tokenizer the tokens of a caption are not counted.
    assert len(problems) == len(EXPECTED) - 1 + 2
    assert contents(broken, ".work") == before


def test_what_the_base_would_not_read_of_a_negative_caption_is_reported(project: Path) -> None:
    edit(project / "params.yaml", lambda text: with_values(text, {"morph.negative": f"'{LONG}'"}))
    problems = checked()
    assert problems and problems == [
        f"params.yaml: morphs.{key}: morph.negative: the caption has 82 tokens, the base reads 64."
        " Shorten it by 18 or more."
        for key in load_params().morphs
    ]


def test_a_tracking_server_without_a_scheme_is_reported(project: Path) -> None:
    edit(project / "params.yaml", lambda text: with_values(text, {"tracking.uri": "localhost:5000"}))
    assert checked() == [
        "params.yaml: tracking.uri: 'localhost:5000' does not say how to reach it. Write http://localhost:5000."
    ]


def test_a_missing_base(project: Path) -> None:
    edit(project / "params.yaml", lambda text: with_values(text, {"base.source": "bases/none"}))
    shutil.rmtree(project / "bases")
    (problem,) = checked()
    assert problem.startswith("params.yaml: base.source: ") and "bases/none" in problem


def test_a_base_that_is_not_the_pinned_one_is_reported_with_what_to_write(project: Path) -> None:
    config = project / "bases/tiny/unet/config.json"
    edit(config, lambda text: text + "\n")
    (problem,) = checked()
    found = re.fullmatch(r"params\.yaml: base\.revision: .+ write `revision: (sha256:[0-9a-f]{64})`\.", problem)
    assert found
    edit(project / "params.yaml", lambda text: with_values(text, {"base.revision": found[1]}))
    assert CliRunner().invoke(app, ["check"]).exit_code == 0


def test_wrong_params_are_reported_before_anything_else_is_checked(project: Path) -> None:
    edit(project / "params.yaml", lambda text: with_values(text, {"train.rank": 0, "morph.fps": "fast"}))
    before = contents(project)
    problems = checked()
    assert [problem.split(": found")[0] for problem in problems] == [
        "params.yaml: train.rank",
        "params.yaml: morph.fps",
    ]
    assert contents(project) == before


def test_a_valid_project_passes_and_gets_one_constant_file(project: Path, tmp_path: Path) -> None:
    before = contents(project)
    answer = CliRunner().invoke(app, ["check"])
    assert (answer.exit_code, answer.stderr) == (0, "")
    made = contents(project, ".work")
    constant = made.pop("data/checked.txt")
    assert made == before
    edit(project / "params.yaml", lambda text: with_values(text, {"train.rank": 3}))
    edit(project / "data/raw/hills/metadata.jsonl", lambda text: text.replace("a blue hill", "a blue lake"))
    assert CliRunner().invoke(app, ["check"]).exit_code == 0
    assert (project / "data/checked.txt").read_bytes() == constant, "every prepare would run again"


def test_other_params_do_not_decode_pictures_again_but_other_limits_and_other_pictures_do(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []

    def load_picture(path: Path, max_megapixels: float) -> reading.Picture:
        decoded.append(path.name)
        return reading.load_picture(path, max_megapixels)

    def check_again() -> list[str]:
        decoded.clear()
        assert CliRunner().invoke(app, ["check"]).exit_code == 0
        return sorted(decoded)

    monkeypatch.setattr(integrity, "load_picture", load_picture)
    everything = sorted([*HILLS, *DOTS])
    assert check_again() == everything
    edit(project / "params.yaml", lambda text: with_values(text, {"train.rank": 3, "machine.workers": 2}))
    assert check_again() == []
    paint(project / "data/raw/hills/blue.png", 77)
    assert check_again() == ["blue.png"]
    edit(project / "params.yaml", lambda text: with_values(text, {"prepare.max_megapixels": 90.0}))
    assert check_again() == everything
    shutil.rmtree(project / ".work/checked")
    assert check_again() == everything


def test_a_failing_check_leaves_no_file_of_its_own(project: Path) -> None:
    (project / "data/raw/dots/d2.png").unlink()
    (problem,) = checked()
    assert problem.startswith(f"data/raw/dots/metadata.jsonl:{list(DOTS).index('d2.png') + 1}: the picture 'd2.png'")
    assert not (project / "data/checked.txt").exists()


def test_a_project_without_morphs_and_edits_is_valid(project: Path) -> None:
    edit(project / "params.yaml", lambda text: with_entries(with_entries(text, "morphs", ""), "edits", ""))
    assert CliRunner().invoke(app, ["check"]).exit_code == 0


def test_train_params_that_cannot_work_together_are_reported(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    values = {"train.patience": 3, "train.optimizer": "adamw8bit", "train.warmup": 6, "train.targets": "[to_q, to_z]"}
    edit(project / "params.yaml", lambda text: with_values(text, values))
    problems = "\n".join(checked())
    for part in (
        "sets.hills: train.patience: there are no losses to stop by",
        "sets.hills: train.optimizer: adamw8bit needs the package bitsandbytes",
        "sets.hills: train.warmup: 6 steps of warm-up in a training of 6",
        "train.targets: no layer is called to_z",
    ):
        assert part in problems, part
    assert problems.count("to_z") == 1, "once, not once for each set"


def test_layers_by_name_and_stopping_with_losses_are_valid(project: Path) -> None:
    values = {"train.targets": "[to_q, ff.net.2]", "train.patience": 2, "train.validate_every": 1}
    edit(project / "params.yaml", lambda text: with_values(text, values))
    assert CliRunner().invoke(app, ["check"]).exit_code == 0


def test_text_encoders_learn_for_sets_with_one_adapter(project: Path) -> None:
    """A rate of 0 is none at all; the set that may have one has it among its own values."""
    params = project / "params.yaml"
    edit(params, lambda text: with_values(text, {"train.text_rate": 0.5}))
    assert checked() == [
        "params.yaml: sets.hills: train.text_rate: 0.5, of adapters of one picture each. Write null, or `adapter: set`."
    ]
    edit(params, lambda text: with_values(text, {"train.text_rate": 0}))
    assert CliRunner().invoke(app, ["check"]).exit_code == 0
    edit(params, lambda text: text.replace("train: {steps: 4}", "train: {steps: 4, text_rate: 0.5}"))
    assert CliRunner().invoke(app, ["check"]).exit_code == 0


def test_pictures_to_hold_out_that_are_not_there_are_reported(project: Path) -> None:
    edit(project / "params.yaml", lambda text: with_values(text, {"train.hold_out": 4}))
    assert checked() == [
        "params.yaml: sets.hills: train.hold_out: 4, of adapters of one picture each. Write 0, or `adapter: set`.",
        "params.yaml: sets.dots: train.hold_out: 4 of 4 pictures, so that none is left to learn from. Write at most 3.",
    ]


def test_weights_of_lpips_that_cannot_be_used_are_reported_with_the_command_that_makes_them(project: Path) -> None:
    params = project / "params.yaml"
    edit(params, lambda text: with_values(text, {"evaluate.lpips_digest": "sha256:00"}))
    assert checked() == ["params.yaml: evaluate.lpips_digest: there is no evaluate.lpips to pin. Write null."]
    edit(params, lambda text: with_values(text, {"evaluate.lpips": "alex.safetensors"}))
    (missing,) = checked()
    assert missing.startswith("params.yaml: evaluate.lpips: there is no file 'alex.safetensors'. Write null, or make")
    (project / "alex.safetensors").write_bytes(b"\x80\x02 a pickle")
    (pickled,) = checked()
    assert "not a safetensors file" in pickled and "pip install lpips" in pickled


@pytest.mark.parametrize(
    ("values", "least"),
    [
        ({"sample.guidance": 2.5, "machine.batch": 1}, {"sample": 2}),
        ({"sample.guidance": 1.0, "morph.guidance": 3.0, "machine.batch": 1}, {"morphs.hills": 2, "morphs.dots": 2}),
        ({"morph.attention": "[up]", "machine.batch": 2}, {"morphs.hills": 3, "morphs.dots": 3}),
        ({"morph.attention": "[up]", "morph.guidance": 3.0, "machine.batch": 5}, {"morphs.hills": 6, "morphs.dots": 6}),
    ],
)
def test_a_batch_without_room_for_one_frame_is_refused(
    project: Path, values: dict[str, object], least: dict[str, int]
) -> None:
    edit(project / "params.yaml", lambda text: with_values(text, values))
    batch = values["machine.batch"]
    edit(project / "params.yaml", lambda text: text.replace("{guidance: 2.0}", "{guidance: 1.0}"))
    assert checked() == [
        f"params.yaml: machine.batch: {batch} is too few for {where}. Write at least {needed}, or null."
        for where, needed in least.items()
    ]
    edit(project / "params.yaml", lambda text: with_values(text, {"machine.batch": max(least.values())}))
    assert CliRunner().invoke(app, ["check"]).exit_code == 0


@pytest.mark.parametrize(("spacing", "warned"), [("leading", True), ("trailing", False)])
def test_pure_noise_that_the_spacing_never_reaches_is_warned_of(project: Path, spacing: str, warned: bool) -> None:
    config = project / "bases/tiny/scheduler/scheduler_config.json"
    changed = {"rescale_betas_zero_snr": True, "timestep_spacing": spacing, "prediction_type": "v_prediction"}
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    (problem,) = checked()
    digest = problem.rpartition("revision: ")[2].rstrip("`.")
    edit(project / "params.yaml", lambda text: with_values(text, {"base.revision": digest}))
    answer = CliRunner().invoke(app, ["check"])
    assert answer.exit_code == 0
    assert ("Warning: bases/tiny/scheduler/scheduler_config.json: with zero terminal SNR" in answer.stderr) == warned
