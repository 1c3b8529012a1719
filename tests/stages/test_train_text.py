"""A set whose adapter has learned on the text encoder, too, through every stage that it goes through."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from pipeline.adapters.lora import TEXT_ATTENTION, read_adapter, read_notes
from pipeline.base.opening import open_base
from pipeline.commands import export
from pipeline.params import load_params
from pipeline.stages import check, morph, prepare, sample, styles, train
from pipeline.stages import edit as stage_edit
from pipeline.training.checkpoints import TrainState
from pipeline.training.trainer import PackTrainer
from tests.project import contents, edit, with_values
from tests.training.jobs import Killed

OWN = "train: {steps: 4, text_rate: 0.03}"
LAYER = "text_encoder.text_model.encoder.layers.0.self_attn"
ADAPTER = Path("models/adapters/dots/set.safetensors")


@pytest.fixture
def reading(ran: Path, project: Path) -> Path:
    """A project whose set `dots` trains the text encoder, prepared."""
    styled = ("{set: hills, style: none", "{set: hills, style: dots")
    edit(project / "params.yaml", lambda text: text.replace("train: {steps: 4}", OWN).replace(*styled))
    for folder in ("data/prepared", "models/adapters/hills"):
        shutil.copytree(ran / folder, project / folder)
    return project


def test_rate_0_equals_off_byte_for_byte(ran: Path, project: Path) -> None:
    edit(project / "params.yaml", lambda text: text.replace("train: {steps: 4}", "train: {steps: 4, text_rate: 0.0}"))
    prepare.run("dots")
    train.run("dots")
    assert contents(project / "models/adapters/dots") == contents(ran / "models/adapters/dots")
    # Not because it came from the cache: another project's.
    assert not any(key.startswith("text_encoder") for key in load_file(project / ADAPTER))


def test_its_file_has_both_parts_and_both_have_learned(ran: Path, reading: Path) -> None:
    check.run()
    train.run("dots")
    tensors, before = load_file(ADAPTER), load_file(ran / ADAPTER)
    text = {key for key in tensors if key.startswith("text_encoder.")}
    assert text == {f"{LAYER}.{end}.lora_{letter}.weight" for end in TEXT_ATTENTION for letter in "AB"}
    assert tensors.keys() - text == before.keys()
    assert all(bool(tensors[key].any()) for key in text), "a part has learned nothing"
    assert any(not torch.equal(tensors[key], before[key]) for key in before), "what is read changes what is learned"
    assert read_notes(ADAPTER)["train"]["text_rate"] == 0.03
    first = contents(reading / "models/adapters/dots")
    shutil.rmtree(".work")
    train.run("dots")
    assert contents(reading / "models/adapters/dots") == first
    pipe = StableDiffusionPipeline.from_pretrained(load_params().base.source)
    plain = pipe.encode_prompt("a red lake", "cpu", 1, False)[0]
    pipe.load_lora_weights(ADAPTER.parent, weight_name=ADAPTER.name)
    assert not torch.allclose(pipe.encode_prompt("a red lake", "cpu", 1, False)[0], plain, atol=1e-4)


def test_a_killed_training_gives_the_same_bytes(reading: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(reading / "params.yaml", lambda text: with_values(text, {"machine.checkpoint_every": 1}))
    train.run("dots")
    calm = contents(reading / "models/adapters/dots")
    shutil.rmtree(".work")
    shutil.rmtree("models/adapters/dots")
    plain = PackTrainer.state

    def killed(self: PackTrainer, row: int) -> TrainState:
        if self.step == 3:
            raise Killed
        return plain(self, row)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(PackTrainer, "state", killed)
        train.run("dots")
    assert not ADAPTER.exists()
    train.run("dots")
    assert contents(reading / "models/adapters/dots") == calm


def test_it_acts_wherever_an_adapter_acts(ran: Path, reading: Path) -> None:
    """Against the same file without its text encoder's part: pictures differ everywhere but at weight 0."""
    train.run("dots")
    (reading / "data/styles").mkdir(exist_ok=True)
    styles.run()
    whole = load_file(ADAPTER)
    made = {"with": pictures(), "without": {}}
    strip_text(ADAPTER)
    made["without"] = pictures()
    assert whole.keys() > load_file(ADAPTER).keys()
    base = open_base(load_params().base, torch.device("cpu"))
    assert not read_adapter(ADAPTER, base.digest, base.device, base).reads_text
    for name, one in made["with"].items():
        same = np.array_equal(one, made["without"][name])
        assert same == name.endswith("/0"), name


def strip_text(path: Path) -> None:
    from safetensors import safe_open

    from pipeline.adapters.lora import write_tensors

    with safe_open(path, framework="pt") as file:
        metadata, kept = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    write_tensors(path, {key: value for key, value in kept.items() if not key.startswith("text_")}, metadata)


def pictures() -> dict[str, np.ndarray]:
    """Frames of the set's own morph and of one in its style, a sample sheet, and edited pictures by scale."""
    sample.run("dots")
    for key in ("dots", "hills"):
        morph.run(key)
    stage_edit.run("hills")
    paths = {
        "sample": "reports/samples/dots.png",
        "own morph": "data/morphs/dots/frames/0001.png",
        "style": "data/morphs/hills/frames/0001.png",
        "edit/0": "data/edits/hills/0/blue.png",
        "edit/1": "data/edits/hills/1/blue.png",
    }
    found = {}
    for name, path in paths.items():
        with Image.open(path) as picture:
            found[name] = np.asarray(picture.convert("RGB"))
    return found


def test_it_is_exported_with_kohyas_names(reading: Path) -> None:
    train.run("dots")
    (written,) = export.run("dots", Path("exported"), force=False)
    names = load_file(written)
    ours = load_file(ADAPTER)
    down = names["lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight"]
    assert torch.equal(down, ours[f"{LAYER}.q_proj.lora_A.weight"])
    assert len(names) == len(ours) * 3 // 2
