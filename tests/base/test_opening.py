from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from pipeline.base import stable_diffusion
from pipeline.base.device import choose_device, find_dtype_problems, torch_dtype
from pipeline.base.opening import open_base
from pipeline.base.protocol import Base
from pipeline.errors import UserError
from pipeline.sections import BaseSection
from tests.tiny import open_tiny, section


def test_encoding_and_decoding_equal_the_autoencoders_own(tiny: Base) -> None:
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scale = tiny.vae.config.scaling_factor
    with torch.no_grad():
        expected = tiny.vae.encode(pixels * 2 - 1).latent_dist
        decoded = tiny.vae.decode(expected.mean).sample / 2 + 0.5
    posterior = tiny.encode(pixels)
    assert torch.allclose(posterior.mean, expected.mean * scale, atol=1e-6)
    assert torch.allclose(posterior.std, expected.std * scale, atol=1e-6)
    assert torch.allclose(tiny.decode(posterior.mean), decoded.clamp(0, 1), atol=1e-5)


def test_captions_are_conditioned_as_the_pipeline_does(tiny_folders: dict[str, Path]) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folders["epsilon"])
    expected, _ = pipe.encode_prompt("a red hill", "cpu", 1, False)
    assert torch.allclose(
        open_tiny(tiny_folders["epsilon"]).condition(["a red hill"])["embedding"], expected, atol=1e-6
    )


def test_lower_precision_still_predicts_in_float32(tiny_folders: dict[str, Path]) -> None:
    full, half = open_tiny(tiny_folders["epsilon"]), open_tiny(tiny_folders["epsilon"], dtype="bfloat16")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    captions = full.condition(["a blue lake"])
    with torch.no_grad():
        one, two = (base.predict(latents, torch.tensor([300]), captions) for base in (full, half))
    assert two.dtype == torch.float32 and not torch.equal(one, two)
    assert float((one - two).norm() / one.norm()) < 0.05


def test_opening_refuses_a_base_with_problems(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"base\.revision"):
        open_base(section(tiny_folders["epsilon"], revision="sha256:other"), torch.device("cpu"))


def test_the_schedule_is_the_bases_own(tiny: Base, tiny_folders: dict[str, Path]) -> None:
    scheduler = DDIMScheduler.from_pretrained(tiny_folders[tiny.path.prediction_type], subfolder="scheduler")
    assert np.allclose(tiny.path.alphas_cumprod, scheduler.alphas_cumprod)
    generator = torch.Generator().manual_seed(2)
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    timesteps = torch.tensor([0, 500, 999])
    assert torch.allclose(tiny.path.add_noise(clean, noise, timesteps), scheduler.add_noise(clean, noise, timesteps))
    if tiny.path.prediction_type == "v_prediction":
        expected = scheduler.get_velocity(clean, noise, timesteps)
        assert torch.allclose(tiny.path.target(clean, noise, timesteps), expected, atol=1e-6)
    else:
        assert torch.equal(tiny.path.target(clean, noise, timesteps), noise)


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"machine\.device"):
            choose_device("cuda")


def test_float16_is_refused_on_a_cpu(tiny_folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="float16 needs a GPU"):
        open_tiny(tiny_folders["epsilon"], dtype="float16")


@pytest.mark.parametrize(("name", "allowed"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_tf32_is_allowed_where_it_is_asked_for_and_nowhere_else(name: str, allowed: bool) -> None:
    section = BaseSection(source="x", revision=None, config=None, dtype=name, clip_skip=0, adapters=())
    assert torch_dtype(section) == (torch.bfloat16 if name == "bfloat16" else torch.float32)
    assert torch.backends.cuda.matmul.allow_tf32 is allowed and torch.backends.cudnn.allow_tf32 is allowed
    torch_dtype(section.model_copy(update={"dtype": "float32"}))


def test_tf32_without_an_nvidia_gpu_is_refused() -> None:
    section = BaseSection(source="x", revision=None, config=None, dtype="tf32", clip_skip=0, adapters=())
    assert "NVIDIA" in find_dtype_problems(section, torch.device("cpu"))[0].found
    assert not find_dtype_problems(section, torch.device("cuda"))


def test_large_pictures_go_through_the_autoencoder_in_tiles(tiny: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    whole = tiny.encode(pixels).mean
    assert not tiny.vae.use_tiling
    monkeypatch.setattr(stable_diffusion, "TILED_FROM", 64)
    tiled = tiny.encode(pixels).mean
    assert tiny.vae.use_tiling and tiled.shape == whole.shape and not torch.equal(tiled, whole)
    assert tiny.decode(whole).shape == pixels.shape and tiny.vae.use_tiling
    assert tiny.decode(whole[..., :16, :16]).shape == (1, 3, 32, 32) and not tiny.vae.use_tiling
