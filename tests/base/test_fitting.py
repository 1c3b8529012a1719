"""Parts of a base that do not fit are refused before anything is loaded, each with its file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from pipeline.base.fitting import find_fit_problems
from pipeline.errors import UserError
from tests.tiny import build_tiny_xl, open_tiny

WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


@pytest.fixture
def folder(tmp_path: Path, tiny_folders: dict[str, Path]) -> Path:
    return Path(shutil.copytree(tiny_folders["epsilon"], tmp_path / "base"))


def set_values(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change(path: Path, how: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    how(tensors)
    save_file(tensors, path)


def test_whole_bases_fit(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    assert not find_fit_problems(tiny_folders["v_prediction"])
    build_tiny_xl().save_pretrained(tmp_path / "xl")
    assert not find_fit_problems(tmp_path / "xl")


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda tensors: tensors.pop(sorted(tensors)[0]), "missing"),
        (lambda tensors: tensors.update(other=torch.zeros(2)), "other not in the model"),
        (
            lambda tensors: tensors.update({f"{key}x": tensors.pop(key) for key in sorted(tensors)[:3]}),
            "2 more",
        ),
        (lambda tensors: tensors.update({sorted(tensors)[0]: torch.zeros(3, 1)}), "of another shape"),
        (lambda tensors: tensors.update({sorted(tensors)[0]: torch.zeros(16).byte()}), "no floating-point numbers"),
    ],
)
def test_every_part_must_have_exactly_its_tensors(folder: Path, part: str, how: Any, said: str) -> None:
    change(folder / WEIGHTS[part], how)
    with pytest.raises(UserError) as refused:
        open_tiny(folder)
    found = [problem for problem in refused.value.problems if said in problem.found]
    assert found and found[0].where == str(folder / part)


def test_names_of_older_releases_are_still_taken(folder: Path) -> None:
    expected = open_tiny(folder)
    change(folder / WEIGHTS["text_encoder"], lambda t: t.update({f"text_model.{key}": t.pop(key) for key in list(t)}))
    change(
        folder / WEIGHTS["text_encoder"], lambda t: t.update({"text_model.embeddings.position_ids": torch.arange(9)})
    )
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            for new, before in old.items():
                if new in key:
                    tensors[key.replace(new, before)] = tensors.pop(key)

    change(folder / WEIGHTS["vae"], rename)
    opened = open_tiny(folder)
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(opened.encode(pixels).mean, expected.encode(pixels).mean)
    captions = ["a red hill"]
    assert torch.equal(opened.condition(captions)["embedding"], expected.condition(captions)["embedding"])


def other_encoder(folder: Path) -> None:
    model = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    config = model.config
    config.hidden_size = 24
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def told_the_guidance(folder: Path) -> None:
    config = UNet2DConditionModel.load_config(folder, subfolder="unet")
    UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": 8}).save_pretrained(folder / "unet")


@pytest.mark.parametrize(
    ("damage", "where", "said"),
    [
        (lambda f: set_values(f / "unet/config.json", in_channels=9), "unet", "conv_in.weight"),
        (lambda f: set_values(f / "unet/config.json", layers_per_block=10**6), "unet/config.json", "layers, more than"),
        (lambda f: set_values(f / "unet/config.json", layers_per_block=10**9), "unet/config.json", "a number beyond"),
        (lambda f: set_values(f / "unet/config.json", norm_num_groups=0), "unet/config.json", "describes no model"),
        (lambda f: set_values(f / "unet/config.json", act_fn="sing"), "unet/config.json", "describes no model"),
        (lambda f: set_values(f / "unet/config.json", addition_embed_type="text_time"), "unet", "describes no model"),
        (lambda f: set_values(f / "unet/config.json", num_class_embeds=4), "unet", "class_embedding"),
        (lambda f: set_values(f / "unet/config.json", center_input_sample="no"), "", ""),
        (lambda f: set_values(f / "unet/config.json", down_block_types={"a": [[]]}), "unet/config.json", "no model"),
        (lambda f: set_values(f / "vae/config.json", latent_channels=5), "vae", "of another shape"),
        (lambda f: set_values(f / "vae/config.json", scaling_factor="much"), "vae/config.json", "scaling_factor"),
        (lambda f: set_values(f / "vae/config.json", scaling_factor=0), "vae/config.json", "scaling_factor is 0"),
        (lambda f: set_values(f / "vae/config.json", shift_factor=0.5), "vae/config.json", "shift_factor is 0.5"),
        (other_encoder, "unet/config.json", "cross_attention_dim is 16, and the text encoders' hidden_size are 24"),
        (lambda f: set_values(f / "text_encoder/config.json", num_hidden_layers=3), "text_encoder", "missing"),
        (lambda f: set_values(f / "text_encoder/config.json", num_attention_heads=0), "text_encoder", "no model"),
        (lambda f: set_values(f / "text_encoder/config.json", quantization_config={}), "text_encoder", "not read"),
        (lambda f: (f / "tokenizer/tokenizer.json").write_text("{}"), "tokenizer", "cannot be used"),
        (lambda f: (f / "tokenizer/tokenizer.json").write_text("[" * 3000), "tokenizer", "cannot be used"),
        (
            lambda f: set_values(f / "tokenizer/tokenizer_config.json", model_max_length=10**30),
            "tokenizer",
            "max_length",
        ),
        (lambda f: shutil.copytree(f / "unet", f / "vae", dirs_exist_ok=True), "vae/config.json", "_class_name"),
        (lambda f: set_schedule(f, num_train_timesteps=0), "scheduler", "num_train_timesteps is 0"),
        (lambda f: set_schedule(f, num_train_timesteps=10**12), "scheduler", "num_train_timesteps is 1000000000000"),
        (lambda f: set_schedule(f, beta_schedule="cubic"), "scheduler", "beta_schedule is 'cubic'"),
        (lambda f: set_schedule(f, beta_schedule=["linear"]), "scheduler", "beta_schedule is ['linear']"),
        (lambda f: set_schedule(f, beta_start=float("nan")), "scheduler", "beta_start is nan"),
        (lambda f: set_schedule(f, trained_betas=[0.1, 2]), "scheduler", "trained_betas"),
        (lambda f: set_schedule(f, steps_offset=-5), "scheduler", "steps_offset is -5"),
        (lambda f: set_schedule(f, timestep_spacing={}), "scheduler", "timestep_spacing is {}"),
        (lambda f: set_schedule(f, _class_name="EDMEulerScheduler"), "scheduler", "is 'EDMEulerScheduler': a noise"),
        (lambda f: set_schedule(f, _class_name="FlowMatchEulerDiscreteScheduler"), "scheduler", "a noise schedule of"),
        (lambda f: set_schedule(f, _class_name=["DDIMScheduler"]), "scheduler", "a noise schedule of another kind"),
        (lambda f: set_schedule(f, _class_name="DPMSolverMultistepScheduler"), "", ""),
        (lambda f: set_schedule(f, use_flow_sigmas=True), "scheduler", "use_flow_sigmas is true: a noise schedule of"),
        (lambda f: set_schedule(f, timestep_type="continuous"), "scheduler", "timestep_type is 'continuous'"),
        (
            lambda f: set_values(f / "vae/config.json", latents_mean=[0.0] * 4),
            "vae/config.json",
            "latents_mean is [0.0",
        ),
        (lambda f: set_values(f / "vae/config.json", latents_std=[1.0] * 4), "vae/config.json", "latents_std is [1.0"),
        (told_the_guidance, "unet/config.json", "time_cond_proj_dim is 8, and what bases of this family have is null"),
    ],
)
def test_what_does_not_belong_together_is_refused(folder: Path, damage: Any, where: str, said: str) -> None:
    damage(folder)
    if not said:  # a value that nothing asks for
        assert open_tiny(folder)
        return
    with pytest.raises(UserError) as refused:
        open_tiny(folder)
    texts = [f"{problem.where}: {problem.found}" for problem in refused.value.problems]
    assert [text for text in texts if text.startswith(str(folder / where)) and said in text], texts


def set_schedule(folder: Path, **values: Any) -> None:
    set_values(folder / "scheduler/scheduler_config.json", **values)
