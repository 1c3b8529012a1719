from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from peft.utils import get_peft_model_state_dict

from pipeline.adapters.lora import adapter_weights, add_adapter
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.morphing.ddim import invert, sample
from pipeline.morphing.engine import Keyframe, adapter_weights_at, cross_fade, morph_segment
from tests.reference import ddim_sample, merge_into, slerp_by_hand
from tests.tiny import open_tiny

RANK, ALPHA = 2, 3.0


def keyframes(base: StableDiffusion, adapters: bool = True) -> tuple[Keyframe, Keyframe]:
    generator = torch.Generator().manual_seed(21)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    captions = base.condition(["a red hill", "a blue lake"])
    names = ("first", "second") if adapters else (None, None)
    return Keyframe(latents[0], captions[0], names[0]), Keyframe(latents[1], captions[1], names[1])


def add_random_adapters(base: StableDiffusion) -> dict[str, dict[str, torch.Tensor]]:
    for number, name in enumerate(("first", "second")):
        add_adapter(base.unet, name, RANK, ALPHA, seed=number)
        for index, weight in enumerate(adapter_weights(base.unet, name).values()):
            generator = torch.Generator().manual_seed(100 * number + index)
            weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    return {
        name: {key: value.clone() for key, value in get_peft_model_state_dict(base.unet, adapter_name=name).items()}
        for name in ("first", "second")
    }


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_all_frames_together_equal_frame_by_frame_with_really_merged_weights(
    prediction_type: str, tiny_folders: dict[str, Path]
) -> None:
    """The reference inverts and samples one latent at a time on a plain UNet whose weights are really changed."""
    folder = tiny_folders[prediction_type]
    base = open_tiny(folder)
    state = add_random_adapters(base)
    first, second = keyframes(base)
    alphas = torch.tensor([0.0, 0.25, 0.6, 1.0])
    segment = morph_segment(base, first, second, alphas, steps=6, use_adain=False)

    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    noises = []
    for keyframe in (first, second):
        plain = open_tiny(folder)
        merge_into(plain.unet, state, ALPHA / RANK, {keyframe.adapter: 1.0})

        def predict(x: torch.Tensor, t: int, plain=plain, keyframe=keyframe) -> torch.Tensor:
            with torch.no_grad():
                return plain.unet(x, t, keyframe.conditioning[None]).sample

        noises.append(invert(keyframe.latents[None], predict, plain.schedule, 6)[0])
    assert torch.allclose(segment.noise, torch.stack(noises), atol=1e-4)
    for index, alpha in enumerate(alphas.tolist()):
        plain = open_tiny(folder)
        merge_into(plain.unet, state, ALPHA / RANK, {"first": 1 - alpha, "second": alpha})
        caption = (1 - alpha) * first.conditioning + alpha * second.conditioning
        noise = slerp_by_hand(noises[0], noises[1], alpha)
        expected = ddim_sample(plain.unet, noise[None], caption[None], scheduler, 6)[0]
        assert torch.allclose(segment.latents[index], expected, atol=1e-3, rtol=1e-3), alpha


def test_batches_change_nothing_but_rounding(fresh_tiny: Callable[[], StableDiffusion]) -> None:
    base = fresh_tiny()
    add_random_adapters(base)
    alphas = torch.linspace(0, 1, 5)
    together, in_twos = (
        morph_segment(base, *keyframes(base), alphas, steps=4, use_adain=True, batch=batch) for batch in (None, 2)
    )
    assert torch.allclose(together.latents, in_twos.latents, atol=1e-4)


def test_identical_keyframes_give_identical_frames(fresh_tiny: Callable[[], StableDiffusion]) -> None:
    base = fresh_tiny()
    first, _ = keyframes(base, adapters=False)
    frames = morph_segment(base, first, first, torch.linspace(0, 1, 4), steps=4, use_adain=True).latents
    assert frames.isfinite().all() and torch.allclose(frames, frames[:1].expand_as(frames), atol=1e-4)


def test_adain_is_a_real_option(fresh_tiny: Callable[[], StableDiffusion]) -> None:
    base = fresh_tiny()
    alphas = torch.tensor([0.0, 0.5, 1.0])
    on, off = (
        morph_segment(base, *keyframes(base, adapters=False), alphas, steps=4, use_adain=flag).latents
        for flag in (True, False)
    )
    assert not torch.allclose(on[1], off[1], atol=1e-3)
    assert torch.allclose(on[[0, 2]], off[[0, 2]], atol=1e-3)


def test_adapter_weights_cross_and_a_shared_adapter_stays_constant(fresh_tiny: Callable[[], StableDiffusion]) -> None:
    first, second = keyframes(fresh_tiny())
    alphas = torch.tensor([0.0, 0.25, 1.0])
    weights = adapter_weights_at(first, second, alphas, torch.device("cpu"))
    assert weights["first"].tolist() == [1.0, 0.75, 0.0] and weights["second"].tolist() == [0.0, 0.25, 1.0]
    shared = adapter_weights_at(first, first, alphas, torch.device("cpu"))
    assert shared["first"].tolist() == [1.0, 1.0, 1.0]
    plain, _ = keyframes(fresh_tiny(), adapters=False)
    assert adapter_weights_at(plain, plain, alphas, torch.device("cpu")) == {}


def test_the_endpoints_are_sampled_from_the_keyframes_own_noise(fresh_tiny: Callable[[], StableDiffusion]) -> None:
    base = fresh_tiny()
    first, second = keyframes(base, adapters=False)
    segment = morph_segment(base, first, second, torch.tensor([0.0, 1.0]), steps=5, use_adain=True)

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        with torch.no_grad():
            return base.predict(x, torch.full((len(x),), t), second.conditioning[None])

    alone = sample(segment.noise[1:], predict, base.schedule, 5)
    assert torch.allclose(segment.latents[1:], alone, atol=1e-4)


def test_a_cross_fade_is_the_mean_of_the_pictures() -> None:
    black, white = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    faded = cross_fade(black, white, [0, 0.25, 1])
    assert faded[:, 0, 0, 0].tolist() == [0, 0.25, 1]
