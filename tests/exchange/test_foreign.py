"""Other programs' LoRA files, against what diffusers makes of them."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from pipeline.adapters.lora import read_adapter
from pipeline.adapters.mixing import mixed_adapters
from pipeline.base.protocol import Base
from pipeline.errors import UserError
from pipeline.exchange.foreign import is_foreign, read_foreign, usual_name
from pipeline.exchange.kohya import write_kohya
from tests.adapters.test_mixing import inputs, predicted

Fresh = Callable[[], Base]
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
TO_Q = f"unet.{ATTENTION}.to_q"
TO = ("to_q", "to_k", "to_v", "to_out")
TARGETS = ["to_q", "proj_in"]
TEXT_ENCODER = {
    f"lora_te_text_model_encoder_layers_0_self_attn_q_proj.{name}": torch.ones(shape)
    for name, shape in (("lora_down.weight", (2, 16)), ("lora_up.weight", (16, 2)), ("alpha", ()))
}


LAYERS = {f"{ATTENTION}.to_q": 2, f"{ATTENTION}.to_out.0": 3, "down_blocks.0.attentions.0.proj_in": 4}
"""Module to rank; the last is a convolution of one pixel."""


def kohya_factors(denoiser: nn.Module, layers: Mapping[str, int] = LAYERS) -> dict[str, torch.Tensor]:
    """Factors of these ranks, with alpha = rank / 2 + 1."""
    generator = torch.Generator().manual_seed(5)
    content: dict[str, torch.Tensor] = {}
    for module, rank in layers.items():
        weight = denoiser.get_submodule(module).weight
        name, pixel = f"lora_unet_{module.replace('.', '_')}", weight.shape[2:]
        content[f"{name}.lora_down.weight"] = torch.randn(rank, weight.shape[1], *pixel, generator=generator)
        content[f"{name}.lora_up.weight"] = torch.randn(len(weight), rank, *pixel, generator=generator)
        content[f"{name}.alpha"] = torch.tensor(rank / 2 + 1)
    return content


@torch.no_grad()
def ours(base: Base, path: Path) -> torch.Tensor:
    adapter, _ = read_foreign(path, base.denoiser, base.adapter_prefix)
    with mixed_adapters(base.denoiser, [adapter], torch.ones(1, 3)):
        return predicted(base)


@torch.no_grad()
def theirs(folder: Path, path: Path) -> torch.Tensor:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.load_lora_weights(path.parent, weight_name=path.name)
    return pipe.unet(*inputs()).sample


def test_kohyas_files_with_alphas_of_each_layers_own_and_convolutions_of_one_pixel(
    fresh_tiny: Fresh, tmp_path: Path
) -> None:
    """By hand: diffusers 0.42 applies one layer's alpha to the others."""
    base, path = fresh_tiny(), tmp_path / "kohya.safetensors"
    content = kohya_factors(base.denoiser)
    save_file(content, path)
    changed = copy.deepcopy(base.denoiser)
    for module, rank in LAYERS.items():
        name, weight = f"lora_unet_{module.replace('.', '_')}", changed.get_submodule(module).weight
        product = content[f"{name}.lora_up.weight"].flatten(1) @ content[f"{name}.lora_down.weight"].flatten(1)
        weight.data += (rank / 2 + 1) / rank * product.view(weight.shape)
    found = ours(base, path)
    with torch.no_grad():
        assert torch.allclose(found, changed(*inputs()).sample, atol=1e-5)
    assert not torch.allclose(found, predicted(base), atol=1e-2)
    save_file(content | TEXT_ENCODER, path)
    assert is_foreign(path)
    assert torch.equal(ours(base, path), found), "the text encoder's part is left out, and counted"
    assert read_foreign(path, base.denoiser, base.adapter_prefix)[1] == 2


def test_kohyas_files_of_one_alpha_are_what_diffusers_makes_of_them(
    fresh_tiny: Fresh, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    base, path = fresh_tiny(), tmp_path / "kohya.safetensors"
    content = kohya_factors(base.denoiser, dict.fromkeys(LAYERS, 4))
    save_file(content, path)
    assert torch.allclose(ours(base, path), theirs(tiny_folders["epsilon"], path), atol=1e-5)


@pytest.mark.parametrize(("alpha", "stabilised"), [(2, False), (6, False), (3, True)])
def test_diffusers_files_with_their_settings_and_without(
    fresh_tiny: Fresh, tiny_folders: dict[str, Path], tmp_path: Path, alpha: int, stabilised: bool
) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folders["epsilon"])
    pipe.unet.add_adapter(
        LoraConfig(
            r=2, lora_alpha=alpha, use_rslora=stabilised, target_modules=["to_q", "proj_in"], init_lora_weights=False
        )
    )
    layers = get_peft_model_state_dict(pipe.unet)
    config = {"unet": pipe.unet.peft_config["default"].to_dict()}
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=layers, weight_name="with.safetensors", unet_lora_adapter_metadata=config["unet"]
    )
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, weight_name="without.safetensors")
    for name in ("with", "without"):
        path = tmp_path / f"{name}.safetensors"
        assert torch.allclose(ours(fresh_tiny(), path), theirs(tiny_folders["epsilon"], path), atol=1e-5), name
    same = torch.allclose(ours(fresh_tiny(), tmp_path / "with.safetensors"), ours(fresh_tiny(), path), atol=1e-5)
    assert same is (alpha == 2), "only there alpha is the rank"


def test_what_we_export_comes_back_as_it_was(ran: Path, fresh_tiny: Fresh, tmp_path: Path) -> None:
    base, own = fresh_tiny(), ran / "models/adapters/dots/set.safetensors"
    write_kohya(own, tmp_path / "kohya.safetensors")
    assert not is_foreign(own) and is_foreign(tmp_path / "kohya.safetensors")
    with (
        torch.no_grad(),
        mixed_adapters(base.denoiser, [read_adapter(own, base.digest, torch.device("cpu"))], torch.ones(1, 3)),
    ):
        expected = predicted(base)
    assert torch.allclose(ours(base, tmp_path / "kohya.safetensors"), expected, atol=1e-6)


def test_older_names_become_those_that_diffusers_makes_of_them() -> None:
    keys = [f"{ATTENTION}.processor.{layer}_lora.{end}.weight" for layer in TO for end in ("down", "up")]
    keys += [f"{ATTENTION}.{layer}.lora.{end}.weight" for layer in ("to_q", "to_out.0") for end in ("down", "up")]
    keys += [f"{ATTENTION}.to_q.lora_A.weight", "down_blocks.0.attentions.0.proj_in.lora.up.weight"]
    for key in keys:
        assert [usual_name(key)] == list(convert_unet_state_dict_to_peft({key: torch.ones(1)})), key


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"lora_unet_conv_in.hada_w1_a": (2, 2)}, "not been correctly renamed"),
        ({f"{TO_Q}.lora_A.weight": (2, 5), f"{TO_Q}.lora_B.weight": (16, 2)}, "another size"),
        ({"unet.nowhere.lora_A.weight": (2, 16), "unet.nowhere.lora_B.weight": (16, 2)}, "no linear layer"),
        ({"unet.conv_in.lora_A.weight": (2, 4, 3, 3), "unet.conv_in.lora_B.weight": (16, 2, 1, 1)}, "conv_in: factors"),
        ({f"{TO_Q}.lora_A.weight": (2, 16)}, "to_q.lora_B.weight"),
        ({f"text_encoder.{ATTENTION}.lora_A.weight": (2, 16)}, "no factors"),
        ({"model.weight": (2, 2)}, "no factors for the denoiser"),
        ({"lora_unet_conv_in.lora_down.weight": (2, 4), "lora_unet_conv_in.dora_scale": (16, 1)}, "a DoRA"),
    ],
)  # fmt: skip
def test_what_is_no_lora_of_this_base_is_refused(
    fresh_tiny: Fresh, tmp_path: Path, content: dict[str, tuple[int, ...]], said: str
) -> None:
    base, path = fresh_tiny(), tmp_path / "x.safetensors"
    save_file({name: torch.ones(shape) for name, shape in content.items()}, path)
    with pytest.raises(UserError, match=r"x\.safetensors") as refused:
        read_foreign(path, base.denoiser, base.adapter_prefix)
    assert said in str(refused.value), str(refused.value)


def test_a_file_that_is_not_whole_is_refused(fresh_tiny: Fresh, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x40\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match=r"x\.safetensors"):
        is_foreign(path)
