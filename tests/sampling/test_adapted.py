"""Captions under adapters that change text encoders: against merged weights, and against diffusers' own pipelines."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from pipeline.adapters.mixing import Adapter
from pipeline.base.protocol import Base
from pipeline.sampling.adapted import adapted_conditioning
from pipeline.sampling.captions import sample_captions
from tests.reference import random_adapters
from tests.text_adapters import random_text_adapters, read_alone, saved_adapter
from tests.tiny import build_tiny, build_tiny_xl, open_tiny

KINDS = {"plain": StableDiffusionPipeline, "xl": StableDiffusionXLPipeline}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("read")
    build_tiny().save_pretrained(root / "plain")
    build_tiny_xl().save_pretrained(root / "xl")
    return {kind: root / kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_caption_is_read_with_its_own_adapters_at_their_weights(folders: dict[str, Path], kind: str) -> None:
    base = open_tiny(folders[kind])
    one, two = random_text_adapters(base, 2)
    rows = [
        ("a red hill", [(one, 1.0)]),
        ("a red hill", [(one, 0.5), (two, -0.3)]),
        ("a red hill", []),
        ("a blue lake", [(two, 0.7), (two, 0.3)]),
        ("", [(one, 1.0)]),
        ("a red hill", [(one, 1.0)]),
    ]
    read = adapted_conditioning(base, [caption for caption, _ in rows], [adapters for _, adapters in rows])
    for row, (caption, adapters) in enumerate(rows):
        alone = read_alone(base, caption, adapters)
        for name, tensor in read.tensors.items():
            assert torch.allclose(tensor[row], alone[name][0], atol=1e-5), (row, name)
    first, second, plain = (read.take([row])["embedding"] for row in range(3))
    assert not torch.allclose(first, second, atol=1e-2) and not torch.allclose(second, plain, atol=1e-2)
    linear = [module for module in base.text_encoders.modules() if isinstance(module, torch.nn.Linear)]
    assert linear and not any(module._forward_hooks for module in linear)


def test_what_has_no_say_changes_no_bit_and_what_is_the_same_is_read_once(
    tiny: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,), (reading,) = random_adapters(tiny.denoiser, 1), random_text_adapters(tiny, 1)
    captions = ["a red hill", "a blue lake"]
    expected = tiny.condition(captions)["embedding"]
    asked, plain = [], type(tiny).condition
    monkeypatch.setattr(type(tiny), "condition", lambda base, texts: (asked.append(texts), plain(base, texts))[1])
    found = adapted_conditioning(tiny, [*captions, captions[0]], [[(one, 1.0)], [], [(reading, 0.0)]])
    assert torch.equal(found["embedding"], expected[[0, 1, 0]])
    adapted_conditioning(tiny, ["a hill"] * 4, [[(reading, weight)] for weight in (0.0, 1.0, 1.0, 0.5)])
    assert asked == [captions, ["a hill"] * 3]


def test_factors_for_what_is_no_layer_of_the_encoders_are_refused(tiny: Base) -> None:
    wrong = Adapter({"text_encoder_2.text_model.nowhere": (torch.ones(2, 16), torch.ones(16, 2))}, 1.0)
    with pytest.raises(ValueError, match=r"text_encoder_2\.text_model\.nowhere, which is no linear layer"):
        adapted_conditioning(tiny, ["a hill"], [[(wrong, 1.0)]])


@pytest.mark.parametrize("weight", [1.0, 0.4])
@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_saved_file_is_in_diffusers_what_it_is_here(
    folders: dict[str, Path], tmp_path: Path, kind: str, stabilised: bool, weight: float
) -> None:
    """The caption and the empty one, and a sample under guidance, to 1e-5."""
    base = open_tiny(folders[kind])
    own = [[(saved_adapter(base, tmp_path / "a.safetensors", rank_stabilised=stabilised), weight)]]
    pipe = KINDS[kind].from_pretrained(folders[kind])
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(tmp_path, weight_name="a.safetensors")
    encoded = pipe.encode_prompt("a red hill", device="cpu", num_images_per_prompt=1, lora_scale=weight,
                                 do_classifier_free_guidance=True)  # fmt: skip
    ours = adapted_conditioning(base, ["a red hill", ""], own * 2)
    theirs = {"embedding": torch.cat(encoded[:2])} | ({"pooled": torch.cat(encoded[2:])} if kind == "xl" else {})
    assert ours.tensors.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, atol=1e-5), name
    assert not torch.allclose(ours["embedding"], base.condition(["a red hill", ""])["embedding"], atol=1e-2)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    expected = pipe("a red hill", latents=noise, num_inference_steps=4, guidance_scale=2.5, height=16, width=16,
                    output_type="latent", cross_attention_kwargs={"scale": weight}).images  # fmt: skip
    found = sample_captions(base, noise, ours.take([0]), own, steps=4, guidance=2.5, solver="ddim")
    assert torch.allclose(found, expected, atol=1e-5)
    without = sample_captions(base, noise, base.condition(["a red hill"]), own, steps=4, guidance=2.5, solver="ddim")
    assert not torch.allclose(found, without, atol=1e-3), "the text encoders' part does nothing"
