"""Bases in one file: each opens as its folder does, or is refused by the names and shapes in its header."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.base import opening
from pipeline.base.checking import base_digest, find_base_problems
from pipeline.base.fitting import find_fit_problems
from pipeline.base.opening import open_base
from pipeline.errors import UserError
from pipeline.sections import BaseSection
from tests.single_files import open_clip_tensors, write_single_file
from tests.tiny import build_tiny, build_tiny_xl, open_tiny, section

KINDS = {"small": build_tiny, "large": build_tiny_xl}
UNET, VAE = "model.diffusion_model.", "first_stage_model."


@pytest.fixture(params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The same tiny base as a folder and as a single file."""
    pipe = KINDS[request.param]()
    pipe.save_pretrained(tmp_path / "base")
    return tmp_path / "base", write_single_file(pipe, tmp_path / "model.safetensors")


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    pipe = build_tiny()
    pipe.save_pretrained(tmp_path / "base")
    return tmp_path / "base", write_single_file(pipe, tmp_path / "model.safetensors")


def single(folder: Path, file: Path) -> BaseSection:
    made = BaseSection(source=str(file), revision=None, config=str(folder), dtype="float32", clip_skip=0, adapters=())
    return made.model_copy(update={"revision": base_digest(made)})


def refusals(folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said of a base that is opened; of which no weights may be loaded for that."""

    def never(*arguments: object, **keywords: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(opening, "load_single_file", never)
    with pytest.raises(UserError) as refused:
        open_base(single(folder, file), torch.device("cpu"))
    return [str(problem) for problem in refused.value.problems]


def change(file: Path, how: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    how(tensors)
    save_file(tensors, file)


def test_a_single_file_opens_as_its_folder_does(both: tuple[Path, Path]) -> None:
    folder, file = both
    expected = open_tiny(folder)
    for component in ("unet", "vae", "text_encoder", "text_encoder_2"):  # the config folder needs no weights
        for weights in (folder / component).glob("*.safetensors"):
            weights.unlink()
    opened = open_base(single(folder, file), torch.device("cpu"))
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    captions = [base.condition(["a red hill"]) for base in (opened, expected)]
    for name, tensor in captions[1].tensors.items():
        assert torch.equal(captions[0].tensors[name], tensor)
    latents = expected.encode(pixels).mean
    assert torch.allclose(opened.encode(pixels).mean, latents, atol=1e-6)
    assert torch.allclose(opened.decode(latents), expected.decode(latents), atol=1e-6)
    # In float64: its weights lie in memory otherwise, and are added up in another order.
    exact = [replace(base, denoiser=base.denoiser.double(), dtype=torch.float64) for base in (opened, expected)]
    one, two = (base.predict(latents, torch.tensor([300]), captions[1]) for base in exact)
    assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_weight_is_that_of_the_folder_and_text_encoders_are_not_rounded(
    both: tuple[Path, Path], dtype: str
) -> None:
    folder, file = both
    opened = open_base(single(folder, file).model_copy(update={"dtype": dtype}), torch.device("cpu"))
    expected = open_base(section(folder).model_copy(update={"dtype": dtype}), torch.device("cpu"))
    for part in ("denoiser", "vae", "text_encoder", "text_encoder_2"):
        if hasattr(expected, part):
            one, two = getattr(opened, part).state_dict(), getattr(expected, part).state_dict()
            assert one.keys() == two.keys()
            assert all(one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in two), part


def test_what_files_hold_beside_the_models_is_no_fault(both: tuple[Path, Path]) -> None:
    """A training's moving averages and schedule, buffers of old releases, a projection that no part asks for."""
    folder, file = both
    first = next(name for name in load_file(file) if name.endswith("text_model.embeddings.token_embedding.weight"))
    clip = first.removesuffix("text_model.embeddings.token_embedding.weight")
    beside = {
        "alphas_cumprod": torch.zeros(4),
        "model_ema.decay": torch.zeros(()),
        f"{VAE}loss.logvar": torch.zeros(()),
        f"{clip}text_model.embeddings.position_ids": torch.arange(4),
        f"{clip}logit_scale": torch.zeros(()),
        f"{clip}text_projection.weight": torch.zeros(2, 2),
    }
    change(file, lambda tensors: tensors.update(beside))
    assert find_fit_problems(folder, file) == []
    assert open_base(single(folder, file), torch.device("cpu"))


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "text_encoder_2"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda tensors, name: tensors.pop(name), "missing"),
        (lambda tensors, name: tensors.update({f"{name}x": tensors.pop(name)}), "missing"),
        (lambda tensors, name: tensors.update({f"{name}x": torch.zeros(2)}), "not in the model"),
        (lambda tensors, name: tensors.update({name: torch.zeros(3)}), "of another shape"),
        (lambda tensors, name: tensors.update({name: tensors[name].byte()}), "no floating-point numbers"),
    ],
)
def test_every_part_must_have_exactly_its_tensors(
    tmp_path: Path, name: str, how: Callable[..., object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = {
        "unet": f"{UNET}middle_block.0.in_layers.2.bias",
        "vae": f"{VAE}decoder.mid.block_1.conv1.bias",
        "text_encoder": "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.bias",
        "text_encoder_2": "conditioner.embedders.1.model.transformer.resblocks.0.mlp.c_fc.bias",
    }[name]
    pipe = build_tiny_xl()
    pipe.save_pretrained(tmp_path / "base")
    file = write_single_file(pipe, tmp_path / "model.safetensors")
    change(file, lambda tensors: how(tensors, tensor))
    (text,) = refusals(tmp_path / "base", file, monkeypatch)
    assert text.startswith(f"{file}: {name}: its weights do not fit base.config") and said in text, text


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        (f"{UNET}input_blocks.9.0.in_layers.0.weight", "unet"),
        (f"{UNET}label_emb.0.0.weight", "unet"),
        (f"{UNET}anything", "unet"),
        (f"{VAE}encoder.down.7.block.0.conv1.weight", "vae"),
        ("cond_stage_model.transformer.text_model.encoder.layers.5.mlp.fc1.bias", "text_encoder"),
    ],
)
def test_layers_that_the_config_does_not_have_are_named(
    small: tuple[Path, Path], extra: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers leaves them out without a word, and the rest of the model makes other pictures than the file's."""
    folder, file = small
    change(file, lambda tensors: tensors.update({extra: torch.zeros(2)}))
    (text,) = refusals(folder, file, monkeypatch)
    assert text.startswith(f"{file}: {part}: ") and "not in the model" in text, text


def set_value(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: set_value(f / "unet/config.json", cross_attention_dim=24), "unet: its weights do not fit"),
        (lambda f: set_value(f / "unet/config.json", in_channels=9), "(16x4x3x3, by base.config 16x9x3x3)"),
        (lambda f: set_value(f / "unet/config.json", layers_per_block=2), "unet: its weights do not fit"),
        (lambda f: set_value(f / "unet/config.json", layers_per_block=10**6), "layers, more than its weights"),
        (lambda f: set_value(f / "unet/config.json", layers_per_block=[1, 1]), "unet: its weights do not fit"),
        (lambda f: set_value(f / "vae/config.json", latent_channels=8), "vae: its weights do not fit"),
        (lambda f: set_value(f / "text_encoder/config.json", num_hidden_layers=2), "text_encoder: its weights"),
    ],
)
def test_a_config_of_another_model_is_refused(
    small: tuple[Path, Path], damage: Callable[[Path], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = small
    damage(folder)
    (text,) = refusals(folder, file, monkeypatch)
    assert said in text, text


def test_a_file_of_another_family_is_named_once(tmp_path: Path) -> None:
    pipes = {name: make() for name, make in KINDS.items()}
    for name, pipe in pipes.items():
        pipe.save_pretrained(tmp_path / name)
        write_single_file(pipe, tmp_path / f"{name}.safetensors")
    said = {
        file: [p.found for p in find_base_problems(single(tmp_path / folder, tmp_path / f"{file}.safetensors"))]
        for file, folder in (("small", "large"), ("large", "small"))
    }
    assert said == {
        "small": ["it is a file of Stable Diffusion, and base.config is of Stable Diffusion XL"],
        "large": ["it is a file of Stable Diffusion XL, and base.config is of Stable Diffusion"],
    }


def test_a_file_that_lacks_a_part_or_is_none_is_refused(
    small: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = small
    whole = file.read_bytes()
    change(file, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(VAE)])
    (text,) = refusals(folder, file, monkeypatch)
    assert text.startswith(f"{file}: it holds no vae.")
    file.write_bytes(whole)
    change(file, lambda tensors: tensors.update({"cond_stage_model.x": torch.zeros(2)}))
    change(file, lambda tensors: [tensors.pop(name) for name in list(tensors) if "cond_stage_model.t" in name])
    (text,) = refusals(folder, file, monkeypatch)
    assert "text_encoder: its weights do not fit base.config (ValueError: neither CLIP nor OpenCLIP" in text
    file.write_bytes(b"\x00" * 4)
    (text,) = refusals(folder, file, monkeypatch)
    assert "not a safetensors file" in text
    shutil.rmtree(folder / "vae")
    assert len(refusals(folder, file, monkeypatch)) == 2  # both of the folder and of the file


@pytest.mark.parametrize(
    ("marks", "config", "where", "said"),
    [
        (["v_pred"], {}, "config", 'prediction_type is "epsilon", and'),
        (["v_pred", "ztsnr"], {"prediction_type": "v_prediction"}, "config", "rescale_betas_zero_snr is "),
        (["edm_vpred.sigma_max"], {"prediction_type": "v_prediction"}, "file", "it is marked edm_vpred.sigma_max"),
        (["v_pred", "ztsnr"], {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, "", ""),
    ],
)
def test_what_a_file_is_marked_with_is_what_the_config_must_say(
    small: tuple[Path, Path], marks: list[str], config: dict[str, object], where: str, said: str
) -> None:
    """As finetunes are marked that predict v: their files differ from the usual ones in nothing else."""
    folder, file = small
    change(file, lambda tensors: tensors.update(dict.fromkeys(marks, torch.zeros(0))))
    scheduler = folder / "scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | config))
    problems = find_base_problems(single(folder, file))
    places = {"config": scheduler, "file": file}
    assert [p.where for p in problems] == ([str(places[where])] if where else [])
    assert all(p.found.startswith(said) for p in problems), problems


def test_open_clip_of_stable_diffusion_2_is_read_too(small: tuple[Path, Path]) -> None:
    """Its file has one layer of the text encoder more than is used, the 24th, and a projection."""
    folder, file = small
    encoder = build_tiny_xl().text_encoder_2
    tensors = {f"cond_stage_model.model.{name}": one.contiguous() for name, one in open_clip_tensors(encoder).items()}
    tensors["cond_stage_model.model.transformer.resblocks.23.ln_1.bias"] = torch.zeros(24)
    change(file, lambda all_: [all_.pop(name) for name in list(all_) if name.startswith("cond_stage_model")])
    change(file, lambda all_: all_.update(tensors))
    config = json.loads(encoder.config.to_json_string())
    set_value(folder / "text_encoder/config.json", **{k: config[k] for k in ("hidden_size", "num_hidden_layers")})
    problems = [str(problem) for problem in find_fit_problems(folder, file)]
    assert problems and all("cross_attention_dim" in text for text in problems)  # the encoder fits; the UNet is 1's
