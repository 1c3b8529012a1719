import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from pipeline.errors import UserError
from pipeline.params import load_params
from tests.declarations import ROOT

SHIPPED = (ROOT / "params.yaml").read_text(encoding="utf-8")


def load(text: str, tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return load_params(path)


def message(text: str, tmp_path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(text, tmp_path)
    return str(caught.value).replace(str(tmp_path / "params.yaml"), "params.yaml")


def test_the_shipped_params_are_valid_and_frozen() -> None:
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(Exception, match="frozen"):
        params.train.rank = 1


def test_overrides_are_merged_into_their_section(tmp_path: Path) -> None:
    params = load(
        SHIPPED.replace(
            "alps: {adapter: image, prepare: {}, train: {}", "alps: {adapter: image, prepare: {}, train: {rank: 3}"
        ),
        tmp_path,
    )  # noqa: E501
    assert params.sets["alps"].train.rank == 3
    assert params.sets["alps"].train.steps == params.train.steps
    assert params.sets["woodcut"].train.rank == params.train.rank != 3


@pytest.mark.parametrize("written", ["3e-5", "3e-05", "0.00003", "3.0e-5"])
def test_a_rate_arrives_as_a_float_however_it_is_written(written: str, tmp_path: Path) -> None:
    rate = load(SHIPPED.replace("learning_rate: 4.0e-3", f"learning_rate: {written}"), tmp_path).train.learning_rate
    assert isinstance(rate, float) and rate == pytest.approx(3e-5)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  adapters: []", "  adapters: [{file: a.safetensors, weight: 9, digest: x}]", "params.yaml: base.adapters.0.weight: found 9. It should be less than or equal to 4."),  # noqa: E501
        ("    adapters:\n      woodcut: 1.0", "    adapters:\n      a/b/c: 1.0", "params.yaml: edits.alps-woodcut.adapters.a/b/c: found 'a/b/c'. It should be a set's key, a set/picture, or the name of a .safetensors file in models/loras."),  # noqa: E501
        ("  rank: 8", "  rank: 0", "params.yaml: train.rank: found 0. It should be greater than or equal to 1."),
        ("  rank: 8", "  rank: eight", "params.yaml: train.rank: found 'eight'. It should be a valid integer."),
        ("  rank: 8", "  rank: true", "params.yaml: train.rank: found True. It should be a valid integer."),
        ("  rank: 8", "  rnak: 8", "params.yaml: train.rnak: unknown key. Did you mean 'rank'? Allowed here: objective, guidance_from, "),
        ("  rank: 8", "  rnak: 8", "params.yaml: train.rank: the key is missing. Add it; the comments in the shipped params.yaml explain each key."),
        ("learning_rate: 4.0e-3", "learning_rate: .nan", "params.yaml: train.learning_rate: found nan. It should be a finite number."),  # noqa: E501
        ("  device: auto", "  device: tpu", "params.yaml: machine.device: found 'tpu'. It should be 'auto', 'cpu', 'cuda' or 'mps'."),  # noqa: E501
        ("  workers:", "  workers: 0", "params.yaml: machine.workers: found 0. It should be greater than or equal to 1, or be null."),  # noqa: E501
        ("  width: 128", "  width: 130", "params.yaml: prepare.width: found 130. It should be a multiple of 8."),  # noqa: E501
        ("background:\n  - 255", "background:\n  - 256", "params.yaml: prepare.background.0: found 256. It should be less than or equal to 255."),  # noqa: E501
        ("weights:\n  - 0.0", "weights:\n  - 9", "params.yaml: sample.weights.0: found 9. It should be less than or equal to 4."),
        ("weights:\n  - 0.0\n  - 0.5\n  - 1.0", "weights: []", "params.yaml: sample.weights: found []. It should have at least 1 item, not 0."),  # noqa: E501
        ("      steps: 160", "      stepz: 160", "params.yaml: sets.woodcut.train.stepz: unknown key. Did you mean 'steps'?"),
        ("    adapter: set\n    prepare: {}", "    adapter: set", "params.yaml: sets.woodcut.prepare: the key is missing. Write `prepare: {}`"),  # noqa: E501
        ("  from: 0.8", "  from: 1.0", "params.yaml: refiner.from: found 1.0. It should be less than 1."),
        ("  from: 0.8", "  from: 0", "params.yaml: refiner.from: found 0. It should be greater than 0."),
        ("  from: 0.8", "  form: 0.8", "params.yaml: refiner.form: unknown key. Did you mean 'from'? Allowed here: source, revision, from."),
        ("  from: 0.8", "  start: 0.8", "params.yaml: refiner.from: the key is missing. Add it;"),
        ("  woodcut:", "  Wood cut:", "params.yaml: sets.Wood cut: found 'Wood cut'. It should have only lower-case letters, digits and (not first) hyphens."),  # noqa: E501
        ("  woodcut:", "  -x:", "params.yaml: sets.-x: found '-x'. It should have only lower-case letters, digits and (not first) hyphens."),  # noqa: E501
        ("  alps:\n    set: alps\n", "  alps:\n    set: alpz\n", "params.yaml: morphs.alps.set: there is no set 'alpz'. Choose one of alps, woodcut"),
        ("keyframes:\n    - dawn.jpg\n    - day.jpg\n    - sunset.jpg\n    - night.jpg", "keyframes: [a.jpg]", "params.yaml: morphs.alps.keyframes: found ['a.jpg']. It should have at least 2 items, not 1."),  # noqa: E501
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_its_key_what_was_found_and_what_it_should_be(
    old: str, new: str, expected: str, tmp_path: Path
) -> None:
    assert old in SHIPPED
    assert expected in message(SHIPPED.replace(old, new), tmp_path)


def test_all_mistakes_are_reported_at_once_and_a_shared_one_only_once(tmp_path: Path) -> None:
    text = (
        SHIPPED.replace("  rank: 8", "  rank: 0")
        .replace("  fps: 12.0", "  fps: fast")
        .replace("  width: 128", "  width: 1")
    )
    lines = message(text, tmp_path).splitlines()
    assert len(lines) == 3 and all(
        any(key in line for line in lines) for key in ("train.rank", "morph.fps", "prepare.width")
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  targets: attention", "  targets: attn", "train.targets: found 'attn'. It should be 'attention' or 'attention+feed-forward', or be a list."),
        ("  targets: attention", "  targets: [to_q, 3]", "train.targets.1: found 3. It should be a valid string."),
        ("  targets: attention", "  targets: {to_q: 1}", "train.targets: found {'to_q': 1}. It should be 'attention' or 'attention+feed-forward', or be a list."),
        ("  pacing: perceptual", "  pacing: [0, 1]", "morph.pacing: found [0, 1]. It should be 'linear' or 'perceptual', or have at least 3 items, not 2."),
        ("  pacing: perceptual", "  pacing: [0, 0.6, 0.4, 1]", "morph.pacing: found [0, 0.6, 0.4, 1]. It should be 'linear' or 'perceptual', or rise from 0 to 1."),
        ("  pacing: perceptual", "  pacing: [0, 2, 1]", "morph.pacing.1: found 2. It should be less than or equal to 1."),
        ("  min_snr_gamma:", "  min_snr_gamma: none", "train.min_snr_gamma: found 'none'. It should be a valid number, or be null."),
        ("background:\n  - 255\n  - 255\n  - 255", "background: [0, 0]", "prepare.background: found [0, 0]. It should have at least 3 items, not 2."),
        ("  flip: false", "  flip: maybe", "train.flip: found 'maybe'. It should be true or false."),
        ("  alps: {adapter: image, prepare: {}, train: {}, sample: {}}", "  alps: 3", "sets.alps: found 3. It should be a mapping."),
        ("  alps: {adapter: image, prepare: {}, train: {}", "  alps: {adapter: image, prepare: {}, train: {rank: 0}", "sets.alps.train.rank: found 0. It should be greater than or equal to 1."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_problem_whatever_else_the_key_may_be(
    old: str, new: str, expected: str, tmp_path: Path
) -> None:
    assert old in SHIPPED
    assert message(SHIPPED.replace(old, new), tmp_path) == f"params.yaml: {expected}"


def test_a_missing_section_is_reported_once_and_not_for_each_set(tmp_path: Path) -> None:
    before, _, rest = SHIPPED.partition("\nsample:\n")
    without = before + rest[rest.index("\n# How the frames") :]
    assert message(without, tmp_path).startswith("params.yaml: sample: the key is missing. ")
    assert len(message(without, tmp_path).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: [", "params.yaml:1: not valid YAML"),
        ("base: 1\nbase: 2\n", "params.yaml:2: not valid YAML"),
        ("- 1\n", "no mapping of sections"),
        ("", "no mapping of sections"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_broken_yaml_is_reported_with_its_line(text: str, expected: str, tmp_path: Path) -> None:
    assert expected in message(text, tmp_path)


def test_a_missing_file_and_bytes_that_are_not_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the file is missing"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="UTF-8"):
        load_params(tmp_path / "params.yaml")


def test_every_key_has_a_comment() -> None:
    lines = SHIPPED.splitlines()
    groups = {
        "height", "autoencoder_batch", "autoencoder_rate", "decoder_rate", "unet_batch", "unet_rate",
    }  # fmt: skip
    for number, line in enumerate(lines):
        if (found := re.match(r"  (\w+):", line)) and "{" not in line and found[1] not in ("alps", "woodcut", *groups):
            named = f"  # {found[1]}: " in "\n".join(
                lines[number - 8 : number]
            )  # a key after a list: DVC drops comments there
            assert lines[number - 1].startswith("  #") or named, f"{found[1]} has no comment"


def written_back(tmp_path: Path, *changes: Sequence[str]) -> str:
    """The shipped file after one `dvc exp run -S` for each group of changes: by the function that DVC calls for it."""
    path = tmp_path / "params.yaml"
    path.write_text(SHIPPED, encoding="utf-8")
    for group in changes:
        apply_overrides(path, list(group))
    return path.read_text(encoding="utf-8")


def test_an_experiment_changes_nothing_of_the_file_but_its_value(tmp_path: Path) -> None:
    assert written_back(tmp_path, ["train.rank=8"]) == SHIPPED
    assert written_back(tmp_path, ["train.rank=4"]) == SHIPPED.replace("  rank: 8\n", "  rank: 4\n")
    several = ["train.learning_rate=3e-5", "base.revision=abc", "edit.suffix=a b", "sets.woodcut.train.steps=9"]
    changed = SHIPPED
    for old, new in (
        ("  learning_rate: 4.0e-3\n", "  learning_rate: 3e-05\n"),
        ("  revision:\n  # A", "  revision: abc\n  # A"),
        ("  suffix: ''\n", "  suffix: a b\n"),
        ("      steps: 160\n", "      steps: 9\n"),
    ):
        assert changed.count(old) == 1
        changed = changed.replace(old, new)
    assert written_back(tmp_path, several) == changed


def test_one_experiment_after_another_keeps_every_comment(tmp_path: Path) -> None:
    """DVC drops comments that follow a list: lists, and what may become one, are followed by a key without a comment."""
    there = [
        "train.targets=[to_k]", "morph.attention=[up,mid]", "morph.pacing=[0,0.3,1]", "prepare.background=[1,2,3]",
        "sample.weights=[1.0]", "edit.scales=[2.0]", "train.rank=4",
    ]  # fmt: skip
    back = [
        "train.targets=attention", "morph.attention=[]", "morph.pacing=perceptual", "prepare.background=[255,255,255]",
        "sample.weights=[0.0,0.5,1.0]", "edit.scales=[0.0,0.5,1.0]", "train.rank=8",
    ]  # fmt: skip
    assert written_back(tmp_path, there) != SHIPPED
    assert written_back(tmp_path, there, ["train.steps=9"], there, back, ["train.steps=20"]) == SHIPPED
