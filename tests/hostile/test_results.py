"""Results that were damaged between stages: each stage says which file is damaged and which stage makes it again."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.adapters.foreign import read_foreign
from pipeline.adapters.lora import CONFIG_KEY, read_adapter, read_notes
from pipeline.adapters.store import read_index
from pipeline.base.protocol import Base
from pipeline.commands import clip, export
from pipeline.errors import UserError
from pipeline.exchange import kohya
from pipeline.frames.prepared import read_prepared
from pipeline.frames.variants import read_facts
from pipeline.report.figures import read_metrics
from pipeline.report.trainings import read_trainings
from pipeline.stages import edit as stage_edit
from pipeline.stages import evaluate, morph, report, sample, styles, train
from tests.hostile.generators import changed_value, damaged, hostile

ADAPTER = "models/adapters/dots/set.safetensors"
FACTS = "data/morphs/dots/morph.json"
INDEX = "models/adapters/dots/adapters.json"
ROWS = "data/prepared/dots/metadata.jsonl"


@pytest.fixture
def made(ran: Path, tmp_path: Path) -> Iterator[Path]:
    """A project with all outputs made, as the working folder."""
    folder = Path(shutil.copytree(ran, tmp_path / "made", ignore=shutil.ignore_patterns(".work", "mlartifacts")))
    with chdir(folder):
        yield folder


def rewrite(path: str, change: Callable[[Any], Any]) -> None:
    Path(path).write_text(json.dumps(change(json.loads(Path(path).read_text()))))


def adapter(change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> None:
    """Damage the adapter of the set `dots`: its tensors, or peft's config."""
    with safe_open(ADAPTER, framework="pt") as file:
        notes = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    config = json.loads(notes[CONFIG_KEY])
    change(tensors, config)
    save_file(tensors, ADAPTER, {**notes, CONFIG_KEY: json.dumps(config)})


def without_half(tensors: dict[str, torch.Tensor], config: Any) -> None:
    del tensors[next(key for key in tensors if "lora_A" in key)]


def other_layer(tensors: dict[str, torch.Tensor], config: Any) -> None:
    for key in [key for key in tensors if "mid_block" in key]:
        tensors[key.replace("mid_block", "nowhere")] = tensors.pop(key)


def other_size(tensors: dict[str, torch.Tensor], config: Any) -> None:
    key = next(key for key in tensors if "lora_A" in key)
    tensors[key] = torch.zeros(2, 5)


def rank_zero(tensors: dict[str, torch.Tensor], config: Any) -> None:
    config.update({key: 0 for key in config if key.endswith(".r")})


def with_text(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """As if the text encoder had learned, too."""
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    tensors |= {f"{layer}.lora_A.weight": torch.ones(2, 16), f"{layer}.lora_B.weight": torch.ones(16, 2)}
    config |= {key.replace("unet.", "text_encoder."): value for key, value in config.items()}


def text_of_another_scale(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    with_text(tensors, config)
    config["text_encoder.lora_alpha"] *= 2


def text_without_settings(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    with_text(tensors, config)
    del config["text_encoder.r"]


def text_of_another_base(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    with_text(tensors, config)
    for key in [key for key in tensors if key.startswith("text_encoder.")]:
        tensors[key.replace("text_encoder.", "text_encoder_2.")] = tensors.pop(key)
    config |= {key.replace("unet.", "text_encoder_2."): value for key, value in config.items()}


def shrink(path: str) -> None:
    with Image.open(path) as picture:
        small = picture.resize((64, 64))
    small.save(path)


STAGES: dict[str, Callable[[], object]] = {
    "train": lambda: train.run("dots"),
    "sample": lambda: sample.run("dots"),
    "morph": lambda: morph.run("dots"),
    "evaluate": lambda: evaluate.run("dots"),
    "styles": styles.run,
    "edit": lambda: stage_edit.run("hills"),
    "report": report.run,
    "clip": lambda: clip.run("dots", Path("out.gif")),
    "export": lambda: export.run("dots", Path("exported"), False),
}


@pytest.mark.parametrize(
    ("stage", "damage", "named", "made_by"),
    [
        ("train", lambda: shrink("data/prepared/dots/d0.png"), "data/prepared/dots", "prepare@dots"),
        ("train", lambda: Path("data/prepared/dots/d1.png").write_bytes(b"x"), "data/prepared/dots", "prepare@dots"),
        ("train", lambda: Path(ROWS).write_text("[]\n"), "metadata.jsonl", "prepare@dots"),
        ("sample", lambda: Path(ADAPTER).write_bytes(b"x"), ADAPTER, ""),
        ("sample", lambda: adapter(without_half), ADAPTER, "train@dots"),
        ("sample", lambda: adapter(other_layer), ADAPTER, "train@dots"),
        ("sample", lambda: rewrite(INDEX, lambda index: {}), "adapters.json", "train@dots"),
        ("sample", lambda: adapter(text_of_another_scale), ADAPTER, "train@dots"),
        ("morph", lambda: adapter(text_without_settings), ADAPTER, "train@dots"),
        ("edit", lambda: adapter(text_of_another_base), ADAPTER, "train@dots"),
        ("morph", lambda: adapter(other_size), ADAPTER, "train@dots"),
        ("morph", lambda: adapter(rank_zero), ADAPTER, "train@dots"),
        ("morph", lambda: rewrite(INDEX, lambda index: [1]), "adapters.json", "train@dots"),
        ("morph", lambda: Path("data/prepared/dots/d3.png").unlink(), "data/prepared/dots/d3.png", "prepare@dots"),
        ("morph", lambda: Path(ROWS).write_text(""), "metadata.jsonl", "prepare@dots"),
        ("evaluate", lambda: rewrite(FACTS, lambda facts: {**facts, "alphas": {}}), FACTS, "morph@dots"),
        ("evaluate", lambda: Path(FACTS).write_text("[" * 5000), FACTS, "morph@dots"),
        ("evaluate", lambda: Path("data/morphs/dots/frames/0001.png").unlink(), "dots/frames", "morph@dots"),
        ("evaluate", lambda: shrink("data/morphs/dots/frames/0001.png"), "dots/frames", "morph@dots"),
        ("evaluate", lambda: Path("data/morphs/dots/floor/0000.png").write_bytes(b"x"), "floor/0000.png", "morph@dots"),
        ("styles", lambda: rewrite(INDEX, lambda index: [1]), "adapters.json", "train@dots"),
        ("edit", lambda: adapter(other_size), ADAPTER, "train@dots"),
        ("edit", lambda: Path("data/styles/hills.json").unlink(), "data/styles/hills.json", "styles"),
        ("edit", lambda: Path("data/prepared/hills/blue.png").write_bytes(b"x"), "hills/blue.png", "prepare@hills"),
        ("report", lambda: Path("data/edits/hills/edit.json").write_text("[]"), "hills/edit.json", "edit@hills"),
        ("report", lambda: Path("data/edits/hills/sheet.png").write_bytes(b""), "hills/sheet.png", "edit@hills"),
        ("report", lambda: Path("reports/metrics/dots.json").write_text("[]"), "metrics/dots.json", "evaluate@dots"),
        ("report", lambda: Path("reports/curves/sets/dots.csv").write_text("a\n"), "sets/dots.csv", "train@dots"),
        ("report", lambda: Path("reports/samples/dots.png").write_bytes(b"x"), "samples/dots.png", "sample@dots"),
        ("report", lambda: Path("reports/smoothness/dots.png").unlink(), "smoothness/dots.png", "evaluate@dots"),
        ("report", lambda: rewrite(FACTS, lambda facts: {**facts, "settings": {}}), FACTS, "morph@dots"),
        ("report", lambda: Path("data/morphs/dots/strip.png").write_bytes(b""), "dots/strip.png", "morph@dots"),
        ("clip", lambda: Path(FACTS).unlink(), FACTS, "morph@dots"),
        ("clip", lambda: Path("data/morphs/dots/frames/0002.png").write_bytes(b"x"), "frames/0002.png", "morph@dots"),
        ("export", lambda: adapter(rank_zero), ADAPTER, "train@dots"),
    ],
)  # fmt: skip
def test_a_damaged_result_is_named_with_the_stage_that_makes_it(
    made: Path, stage: str, damage: Callable[[], object], named: str, made_by: str
) -> None:
    damage()
    before = {path: path.read_bytes() for path in Path("data/morphs").rglob("*") if path.is_file()}
    with pytest.raises(UserError) as refused:
        STAGES[stage]()
    problem = refused.value.problems[0]
    assert named in problem.where and f"dvc repro {made_by}".strip() in problem.fix, str(problem)
    assert before == {path: path.read_bytes() for path in Path("data/morphs").rglob("*") if path.is_file()}


def readers(project: Path) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """Files that stages hand to each other, and who reads them."""
    device = torch.device("cpu")
    digest = read_notes(project / ADAPTER)["base"]["digest"]
    return {
        "facts": (project / FACTS, lambda path: read_facts(path.parent)),
        "index": (project / "models/adapters/hills/adapters.json", lambda path: read_index(path.parent)),
        "metrics": (project / "reports/metrics/dots.json", read_metrics),
        "curves": (project / "reports/curves/sets/hills.csv", read_trainings),
        "adapter": (project / ADAPTER, lambda path: read_adapter(path, digest, device)),
        "rows": (project / "data/prepared/hills/metadata.jsonl", lambda path: read_prepared(path.parent)),
    }


@pytest.mark.parametrize("foreign", [False, True])
def test_any_bytes_of_an_adapter_that_reads_text_are_read_or_refused(
    made: Path, fresh_tiny: Callable[[], Base], foreign: bool
) -> None:
    """Ours with a text encoder's part, and the same with kohya's names, on a base that they must fit."""
    adapter(with_text)
    base, path = fresh_tiny(), made / "x.safetensors"
    kohya.write_kohya(Path(ADAPTER), path)
    source = path.read_bytes() if foreign else Path(ADAPTER).read_bytes()
    prefix = base.adapter_prefix

    def read(path: Path) -> object:
        return read_foreign(path, base, prefix) if foreign else read_adapter(path, base.digest, base.device, base)

    path.write_bytes(source)
    assert read(path).reads_text  # type: ignore[attr-defined]

    @hostile(60)
    @given(content=damaged(source))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        attempt(read, path)

    check()


@pytest.mark.parametrize("kind", ["facts", "index", "metrics", "curves", "adapter", "rows"])
def test_any_bytes_of_a_result_are_read_or_refused(ran: Path, tmp_path: Path, kind: str) -> None:
    source, read = readers(ran)[kind]
    path = tmp_path / source.name

    @hostile(60)
    @given(content=damaged(source.read_bytes()) | st.binary(max_size=40))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        attempt(read, path)

    check()


@pytest.mark.parametrize("kind", ["facts", "index", "metrics"])
def test_any_values_of_a_result_are_read_or_refused(ran: Path, tmp_path: Path, kind: str) -> None:
    source, read = readers(ran)[kind]
    path = tmp_path / source.name

    @hostile(100)
    @given(value=changed_value(json.loads(source.read_text())))
    def check(value: Any) -> None:
        path.write_text(json.dumps(value))
        attempt(read, path)

    check()


def attempt(read: Callable[[Path], object], path: Path) -> None:
    try:
        read(path)
    except UserError as error:
        assert all(problem.found and problem.fix for problem in error.problems)
