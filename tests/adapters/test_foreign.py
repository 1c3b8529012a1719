"""Other programs' LoRA files, against what diffusers makes of them."""

import copy
import json
import re
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

from pipeline.adapters.combining import fuse
from pipeline.adapters.foreign import is_foreign, read_foreign, usual_name
from pipeline.adapters.lora import read_adapter
from pipeline.adapters.mixing import mixed_adapters
from pipeline.base.protocol import Base
from pipeline.errors import UserError
from pipeline.exchange.kohya import write_kohya
from pipeline.sampling.adapted import adapted_conditioning
from tests.adapters.test_mixing import inputs, predicted

Fresh = Callable[[], Base]
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
TO_Q = f"unet.{ATTENTION}.to_q"
TO = ("to_q", "to_k", "to_v", "to_out")
TARGETS = ["to_q", "proj_in"]
TEXT_ENCODER = {
    f"lora_te_text_model_encoder_layers_0_self_attn_q_proj.{name}": torch.linspace(-1, 2, 32).view(shape)
    for name, shape in (("lora_down.weight", (2, 16)), ("lora_up.weight", (16, 2)))
}


LAYERS = {f"{ATTENTION}.to_q": 2, f"{ATTENTION}.to_out.0": 3, "down_blocks.1.attentions.0.proj_in": 4}
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
    adapter = read_foreign(path, base, base.adapter_prefix)
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
    assert torch.equal(ours(base, path), found), "the text encoder's part is no part of the denoiser's"


@torch.no_grad()
def test_larger_convolutions_can_be_fused_as_diffusers_has_them(
    fresh_tiny: Fresh, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    """As in LCM-LoRA's own files: convolutions of three pixels, with a stride and without, and the times' layers."""
    base, path, generator = fresh_tiny(), tmp_path / "large.safetensors", torch.Generator().manual_seed(2)
    names = [
        name
        for name, module in base.denoiser.named_modules()
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3) and not name.startswith("conv_")
    ]
    names.append(next(name for name, _ in base.denoiser.named_modules() if name.endswith("time_emb_proj")))
    assert any("downsamplers" in name for name in names)
    content = {}
    for name in names:
        weight = base.denoiser.get_submodule(name).weight
        pixel = (1, 1) if weight.ndim == 4 else ()
        content[f"unet.{name}.lora_A.weight"] = 0.2 * torch.randn(2, *weight.shape[1:], generator=generator)
        content[f"unet.{name}.lora_B.weight"] = 0.2 * torch.randn(len(weight), 2, *pixel, generator=generator)
    save_file(content, path)
    with pytest.raises(UserError, match="factors of"):
        read_foreign(path, base, base.adapter_prefix)
    plain = predicted(base)
    fuse(base, [(read_foreign(path, base, base.adapter_prefix, fused=True), 1.0)])
    assert torch.allclose(predicted(base), theirs(tiny_folders["epsilon"], path), atol=1e-5)
    assert not torch.allclose(predicted(base), plain, atol=1e-2)


OLD, NEW = "text_encoder.text_model.encoder.layers.0.", "text_encoder.encoder.layers.0."


@pytest.mark.parametrize(
    ("names", "alpha"),
    [
        ("lora_te_text_model_encoder_layers_0_{kohya}.lora_{way}.weight", 5.0),
        (f"{OLD}{{old}}_lora.{{way}}.weight", None),
        (f"{OLD}{{new}}.lora_linear_layer.{{way}}.weight", None),
        (f"{OLD}{{new}}.lora_{{letter}}.weight", None),
        (f"{NEW}{{new}}.lora_{{letter}}.weight", None),
    ],
)
@torch.no_grad()
def test_text_encoders_factors_by_every_name_they_have_had_are_what_diffusers_makes_of_them(
    fresh_tiny: Fresh, tiny_folders: dict[str, Path], tmp_path: Path, names: str, alpha: float | None
) -> None:
    base, path, generator = fresh_tiny(), tmp_path / "text.safetensors", torch.Generator().manual_seed(8)
    content = {f"{TO_Q}.lora_A.weight": torch.ones(2, 16), f"{TO_Q}.lora_B.weight": torch.ones(16, 2)}
    if alpha is not None:
        content = kohya_factors(base.denoiser, {f"{ATTENTION}.to_q": int(2 * alpha - 2)})
    layers = {"self_attn.q_proj": 16, "self_attn.out_proj": 16} | ({} if "{old}" in names else {"mlp.fc1": 32})
    for new, high in layers.items():
        old, kohya = re.sub(r"\.(\w+)_proj", r".to_\1", new), new.replace(".", "_")
        for way, letter, shape in (("down", "A", (2, 16)), ("up", "B", (high, 2))):
            key = names.format(way=way, letter=letter, new=new, old=old, kohya=kohya)
            content[key] = torch.randn(shape, generator=generator)
        if alpha is not None:
            content[key.replace("lora_up.weight", "alpha")] = torch.tensor(alpha)
    save_file(content, path)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folders["epsilon"])
    pipe.load_lora_weights(tmp_path, weight_name=path.name)
    expected = pipe.encode_prompt("a red hill", "cpu", 1, False)[0]
    adapter = read_foreign(path, base, base.adapter_prefix)
    found = adapted_conditioning(base, ["a red hill"], [[(adapter, 1.0)]])["embedding"]
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, base.condition(["a red hill"])["embedding"], atol=1e-2)


@torch.no_grad()
def test_a_text_encoders_alphas_are_its_own(fresh_tiny: Fresh, tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """As diffusers' scripts save them: settings of each part, with alphas of single layers."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folders["epsilon"])
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q"], init_lora_weights=False)
    text = LoraConfig(
        r=2, lora_alpha=5, target_modules=["q_proj", "k_proj"], init_lora_weights=False, alpha_pattern={"k_proj": 7}
    )
    parts = {}
    for module, own in ((pipe.unet, config), (pipe.text_encoder, text)):
        module.add_adapter(own, "default")
        parts[module] = get_peft_model_state_dict(module, adapter_name="default")
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=parts[pipe.unet],
        text_encoder_lora_layers=parts[pipe.text_encoder],
        unet_lora_adapter_metadata=config.to_dict(),
        text_encoder_lora_adapter_metadata=text.to_dict(),
    )
    path, base = tmp_path / "pytorch_lora_weights.safetensors", fresh_tiny()
    expected = pipe.encode_prompt("a red hill", "cpu", 1, False)[0]
    adapter = read_foreign(path, base, base.adapter_prefix)
    found = adapted_conditioning(base, ["a red hill"], [[(adapter, 1.0)]])["embedding"]
    assert torch.allclose(found, expected, atol=1e-5)


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


@pytest.mark.parametrize("pattern", ["to_k", ".*attn2.*", f"^{ATTENTION.replace('.', chr(92) + '.')}.to_k"])
def test_alphas_by_patterns_are_those_of_peft(
    fresh_tiny: Fresh, tiny_folders: dict[str, Path], tmp_path: Path, pattern: str
) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folders["epsilon"])
    config = LoraConfig(
        r=2, lora_alpha=2, alpha_pattern={pattern: 8}, target_modules=["to_q", "to_k"], init_lora_weights=False
    )
    pipe.unet.add_adapter(config)
    layers, path = get_peft_model_state_dict(pipe.unet), tmp_path / "patterns.safetensors"
    for settings, name in ((config.to_dict(), path.name), (None, "plain.safetensors")):
        StableDiffusionPipeline.save_lora_weights(
            tmp_path, unet_lora_layers=layers, weight_name=name, unet_lora_adapter_metadata=settings
        )
    with torch.no_grad():
        expected = pipe.unet(*inputs()).sample
    assert torch.allclose(ours(fresh_tiny(), path), expected, atol=1e-5)
    assert not torch.allclose(ours(fresh_tiny(), tmp_path / "plain.safetensors"), expected, atol=1e-3)


@pytest.mark.parametrize("init", ["pissa_niter_4", "olora"])
def test_factors_for_changed_weights_are_refused(fresh_tiny: Fresh, tmp_path: Path, init: str) -> None:
    base, path = fresh_tiny(), tmp_path / "x.safetensors"
    content = {f"{TO_Q}.lora_A.weight": torch.ones(2, 16), f"{TO_Q}.lora_B.weight": torch.ones(16, 2)}
    save_file(content, path, {"lora_adapter_metadata": json.dumps({"unet.init_lora_weights": init})})
    with pytest.raises(UserError, match=f"init_lora_weights is {init}: .* Restore it, or use another file"):
        read_foreign(path, base, base.adapter_prefix)
    save_file(content, path, {"lora_adapter_metadata": json.dumps({"unet.init_lora_weights": True})})
    assert read_foreign(path, base, base.adapter_prefix).factors


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
    keys += [f"{ATTENTION}.to_q.lora_A.weight", "down_blocks.1.attentions.0.proj_in.lora.up.weight"]
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
        ({f"{TO_Q}.lora_A.weight": (2, 16), f"{TO_Q}.lora_B.weight": (16, 2),
          "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": (2, 16),
          "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_B.weight": (32, 2)}, "no linear layer of this base"),
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
        read_foreign(path, base, base.adapter_prefix)
    assert said in str(refused.value), str(refused.value)


def test_a_file_that_is_not_whole_is_refused(fresh_tiny: Fresh, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x40\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match=r"x\.safetensors"):
        is_foreign(path)
