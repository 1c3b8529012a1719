"""Stable Diffusion XL, tiny and random, against diffusers' own pipeline."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from pipeline.base.checking import find_base_problems
from pipeline.base.stable_diffusion_xl import StableDiffusionXL
from pipeline.morphing.diffmorpher import KeyframeAttention
from pipeline.morphing.engine import EncodedKeyframe, Recipe, invert_keyframes, morph_segment
from pipeline.sampling.captions import sample_captions
from tests.reference import random_adapters
from tests.tiny import build_tiny_xl, open_tiny, section


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("xl")
    build_tiny_xl().save_pretrained(path)
    return path


def test_it_is_opened_as_what_its_index_says(folder: Path) -> None:
    assert not find_base_problems(section(folder))
    base = open_tiny(folder)
    assert isinstance(base, StableDiffusionXL) and base.empty_is_zero
    shapes = {name: tuple(tensor.shape) for name, tensor in base.condition(["a red hill"]).tensors.items()}
    assert shapes == {"embedding": (1, 64, 40), "pooled": (1, 20)}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_it_makes_the_pictures_that_its_own_pipeline_makes(folder: Path, guidance: float) -> None:
    base = open_tiny(folder)
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    theirs = pipe(
        "a red hill",
        latents=noise,
        height=16,
        width=24,
        num_inference_steps=4,
        guidance_scale=guidance,
        output_type="latent",
    ).images
    conditioning = base.condition(["a red hill"])
    ours = sample_captions(base, noise, conditioning, steps=4, guidance=guidance, solver="ddim")
    assert torch.allclose(ours, theirs, atol=1e-3)


def test_empty_captions_are_zero_only_where_the_base_says_so(folder: Path) -> None:
    base = open_tiny(folder)
    both = base.condition(["", "a red hill"])
    for name in ("embedding", "pooled"):
        assert not both[name][0].any() and both[name][1].any()
        assert replace(base, empty_is_zero=False).condition([""])[name].any()


def test_morphs_and_adapters_work_as_on_any_base(folder: Path) -> None:
    base = open_tiny(folder)
    captions = base.condition(["a red hill", "a blue lake"])
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    adapters = random_adapters(base.denoiser, 2)
    pair = [EncodedKeyframe(latents[i], captions.take([i]), ((adapters[i], 1.0),)) for i in range(2)]
    recipe = Recipe(4, 4, use_adain=True, attention=KeyframeAttention(("up",), 0.6, "inputs"))
    noise = invert_keyframes(base, pair, recipe)
    alphas = torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=torch.float64)
    frames = morph_segment(base, *pair, noise, alphas, recipe)
    assert frames.shape == (4, 4, 8, 8) and bool(frames.isfinite().all())
    alone = morph_segment(base, *pair, noise, alphas, recipe, batch=3)
    assert torch.allclose(frames, alone, atol=1e-3)


def test_a_part_that_is_missing_is_told(folder: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    shutil.rmtree(broken / "text_encoder_2")
    said = " ".join(
        str(problem) for problem in find_base_problems(section(folder).model_copy(update={"source": str(broken)}))
    )
    assert "text_encoder_2" in said and "missing" in said
    index = broken / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "FluxPipeline"}))
    (problem,) = find_base_problems(section(folder).model_copy(update={"source": str(broken)}))
    assert "StableDiffusionXLPipeline" in str(problem)
