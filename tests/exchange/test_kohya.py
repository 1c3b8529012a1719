from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from pipeline.adapters.lora import lora_config, save_adapter
from pipeline.base.protocol import Base
from pipeline.exchange.kohya import write_kohya
from pipeline.training.pack import AdapterPack
from tests.text_adapters import saved_adapter
from tests.tiny import build_tiny, build_tiny_xl, open_tiny
from tests.training.settings import SETTINGS

Fresh = Callable[[], Base]


@pytest.mark.parametrize("stabilised", [False, True])
def test_kohyas_format_means_the_same_adapter(
    fresh_tiny: Fresh, tiny_folders: dict[str, Path], tmp_path: Path, stabilised: bool
) -> None:
    """Read back by diffusers, both files give the same predictions."""
    changes = {"alpha": 3.0, "targets": "attention+feed-forward", "rank_stabilised": stabilised}
    settings = SETTINGS.model_copy(update=changes)
    base = fresh_tiny()
    pack = AdapterPack(base, [1], settings)
    pack.up.copy_(0.3 * torch.randn(pack.up.shape, generator=torch.Generator().manual_seed(0)))
    notes = {"base": {"source": "x", "digest": base.digest}}
    save_adapter(tmp_path / "ours.safetensors", pack.tensors(0), lora_config(settings), notes, base.adapter_prefix)
    write_kohya(tmp_path / "ours.safetensors", tmp_path / "kohya.safetensors")
    write_kohya(tmp_path / "ours.safetensors", tmp_path / "again.safetensors")
    assert (tmp_path / "kohya.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    generator = torch.Generator().manual_seed(9)
    inputs = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([300]), torch.randn(1, 64, 16)
    predictions = []
    for file in ("ours", "kohya"):
        pipe = StableDiffusionPipeline.from_pretrained(tiny_folders["epsilon"])
        pipe.load_lora_weights(tmp_path, weight_name=f"{file}.safetensors")
        with torch.no_grad():
            predictions.append(pipe.unet(*inputs).sample)
    with torch.no_grad():
        plain = base.denoiser(*inputs).sample
    assert torch.allclose(predictions[0], predictions[1], atol=1e-6)
    assert not torch.allclose(predictions[0], plain, atol=1e-2)
    module = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0"
    tensors = load_file(tmp_path / "kohya.safetensors")
    assert tensors[f"{module}.lora_down.weight"].shape == (2, 16)
    assert float(tensors[f"{module}.alpha"]) == pytest.approx(3.0 * (2**0.5 if stabilised else 1))


@pytest.mark.parametrize(("build", "starts"), [(build_tiny, {"te"}), (build_tiny_xl, {"te1", "te2"})])
@torch.no_grad()
def test_text_encoders_are_read_from_it_as_from_ours(build: Any, starts: set[str], tmp_path: Path) -> None:
    """By diffusers, from both files."""
    build().save_pretrained(tmp_path / "base")
    base, captions = open_tiny(tmp_path / "base"), []
    saved_adapter(base, tmp_path / "ours.safetensors")
    write_kohya(tmp_path / "ours.safetensors", tmp_path / "kohya.safetensors")
    for file in ("ours", "kohya"):
        pipe = type(build()).from_pretrained(tmp_path / "base")
        pipe.load_lora_weights(tmp_path, weight_name=f"{file}.safetensors")
        captions.append(
            pipe.encode_prompt("a red hill", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[
                0
            ]
        )
    assert torch.allclose(captions[0], captions[1], atol=1e-5)
    assert not torch.allclose(captions[0], base.condition(["a red hill"])["embedding"], atol=1e-2)
    keys = load_file(tmp_path / "kohya.safetensors").keys()
    assert {key.split("_")[1] for key in keys} == {"unet", *starts}
    for start in starts:
        assert f"lora_{start}_text_model_encoder_layers_0_self_attn_out_proj.lora_down.weight" in keys
