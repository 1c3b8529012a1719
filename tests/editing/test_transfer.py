"""Edits against diffusers' own pipelines, and what must hold exactly."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)

from pipeline.adapters.mixing import Adapter
from pipeline.base.conditioning import Control
from pipeline.base.protocol import Base
from pipeline.editing.transfer import Transfer, Work, trail_to_noise, transferred
from pipeline.sampling.captions import sample_captions
from tests.paths import diffusion_path, scheduler_like
from tests.tiny import build_tiny, build_tiny_xl, open_tiny

CAPTIONS = ["a red hill", "a blue lake"]


def noise_like(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def an_adapter(base: Base, seed: int = 3) -> Adapter:
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(seed)
    weight = base.denoiser.get_submodule(name).weight
    factors = torch.randn(2, weight.shape[1], generator=generator), torch.randn(len(weight), 2, generator=generator)
    return Adapter({name: factors}, 1.0)


def edit(base: Base, latents: torch.Tensor, transfer: Transfer, control: Control | None = None, **more) -> torch.Tensor:
    captions = base.condition(CAPTIONS[: len(latents)])
    noise = noise_like(tuple(latents.shape), 1)
    trail = trail_to_noise(base, latents, captions, noise, transfer, filling="masks" in more)
    return transferred(base, trail, captions, [()] * len(latents), transfer, control=control, **more)


def a_net(base: Base, seed: int | None = None) -> ControlNetModel:
    """As made for training, where all its outputs are zero; with a seed: as trained, where they are not."""
    net = ControlNetModel.from_unet(base.denoiser, conditioning_embedding_out_channels=(4, 8)).eval()
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in net.parameters():
                if not weight.any():
                    weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return net.requires_grad_(False)


def edges(count: int) -> torch.Tensor:
    picture = torch.zeros(count, 3, 16, 16)
    picture[:, :, 5], picture[:, :, :, 9] = 1, 1
    return picture


def pipe_of(base: Base, kind: type, **more):
    return kind(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.denoiser,
        scheduler=scheduler_like(base.path),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **more,
    )


def by_diffusers(base: Base, kind: type, captions: list[str], transfer: Transfer, **inputs) -> torch.Tensor:
    """Latents as a pipeline of diffusers makes them, from the same drawn noise as `edit`."""
    pipe = pipe_of(base, kind)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        captions,
        strength=transfer.strength,
        num_inference_steps=transfer.steps,
        guidance_scale=transfer.guidance,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
        **inputs,
    ).images


@pytest.mark.parametrize(("strength", "guidance"), [(0.5, 1.0), (0.8, 3.0), (1.0, 3.0)])
def test_noise_and_back_is_diffusers_image_to_image(tiny: Base, strength: float, guidance: float) -> None:
    latents = noise_like((1, 4, 8, 8))
    transfer = Transfer(10, strength, "noise", guidance, "", solver="ddim")
    ours = edit(tiny, latents, transfer)
    # Latents for a picture: taken as they are. Its noise comes from this generator.
    slow = by_diffusers(tiny, StableDiffusionImg2ImgPipeline, [CAPTIONS[0]], transfer, image=latents)
    assert (ours - slow).abs().max() < 1e-5 * slow.abs().max().clamp(min=1)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.25, 0.75)])
def test_control_is_diffusers_image_to_image_with_a_controlnet(tiny: Base, start: float, end: float) -> None:
    latents, net = noise_like((1, 4, 8, 8)), a_net(tiny, seed=5)
    transfer = Transfer(10, 0.8, "noise", 3.0, "", "ddim", start, end)
    ours = edit(tiny, latents, transfer, Control(net, edges(1), 0.7))
    pipe = pipe_of(tiny, StableDiffusionControlNetImg2ImgPipeline, controlnet=net)
    pipe.set_progress_bar_config(disable=True)
    slow = pipe(
        CAPTIONS[0],
        image=latents,
        control_image=edges(1),
        strength=0.8,
        num_inference_steps=10,
        guidance_scale=3.0,
        controlnet_conditioning_scale=0.7,
        control_guidance_start=start,
        control_guidance_end=end,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
    ).images
    without = edit(tiny, latents, transfer)
    assert (ours - slow).abs().max() < 1e-5 * slow.abs().max().clamp(min=1)
    assert (ours - without).abs().max() > 1e-3


@pytest.mark.parametrize("start", ["noise", "inversion"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_controlnet_of_zeros_changes_no_bit(tiny: Base, start, guidance: float) -> None:
    latents = noise_like((2, 4, 8, 8))
    transfer = Transfer(4, 0.75, start, guidance, "")
    assert torch.equal(edit(tiny, latents, transfer), edit(tiny, latents, transfer, Control(a_net(tiny), edges(2), 1)))


def test_control_acts_from_and_until_its_shares_of_the_steps(tiny: Base) -> None:
    """With the second-order solver, whose midpoints lie between the levels, too."""
    latents, asked = noise_like((1, 4, 8, 8)), list[float]()
    net = a_net(tiny, seed=5)
    net.register_forward_pre_hook(lambda module, inputs: asked.append(float(inputs[1].flatten()[0])))
    edit(tiny, latents, Transfer(8, 1.0, "noise", control_from=0.25, control_until=0.75), Control(net, edges(1), 1))
    levels = tiny.path.levels(8)[::-1]
    assert all(levels[6].time <= time <= levels[2].time for time in asked)
    assert len(asked) == 5  # four steps, and the first of them asks twice


def test_control_acts_to_the_end_of_a_path_without_any_noise_left(tiny: Base) -> None:
    base = replace(tiny, path=diffusion_path(tiny.path.prediction_type, set_alpha_to_one=True))
    latents, control = noise_like((1, 4, 8, 8)), Control(a_net(tiny, seed=5), edges(1), 1.0)
    transfer = Transfer(8, 1.0, "noise")
    whole, shorter = (edit(base, latents, replace(transfer, control_until=until), control) for until in (1.0, 7 / 8))
    assert bool(whole.isfinite().all()) and (whole - shorter).abs().max() > 1e-3


@pytest.mark.parametrize("start", ["noise", "inversion"])
def test_strength_0_is_the_picture(tiny: Base, start) -> None:
    latents = noise_like((2, 4, 8, 8))
    assert torch.equal(edit(tiny, latents, Transfer(10, 0.0, start)), latents)


def test_strength_1_from_noise_is_text_to_image(tiny: Base) -> None:
    """At a last level without any signal; elsewhere a trace of the picture is left, as in diffusers."""
    latents = noise_like((2, 4, 8, 8))
    transfer, captions = Transfer(6, 1.0, "noise"), tiny.condition(CAPTIONS)
    level = tiny.path.levels(6)[-1]
    noisy = level.a * latents + level.s * noise_like((2, 4, 8, 8), 1)
    assert torch.equal(edit(tiny, latents, transfer), sample_captions(tiny, noisy, captions, steps=6))


def test_inversion_comes_back_to_the_picture_and_noise_does_not(tiny: Base) -> None:
    latents = 0.3 * noise_like((2, 4, 8, 8))
    back = edit(tiny, latents, Transfer(40, 0.5, "inversion"))
    other = edit(tiny, latents, Transfer(40, 0.5, "noise"))
    assert (back - latents).abs().mean() < 0.1 * (other - latents).abs().mean()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_each_sample_has_its_own_adapters_in_one_batch_or_in_several(tiny: Base, guidance: float) -> None:
    latents, adapter = noise_like((2, 4, 8, 8)), an_adapter(tiny)
    transfer, captions = Transfer(4, 0.5, "noise", guidance, "a lake"), tiny.condition(CAPTIONS)
    trail = trail_to_noise(tiny, latents, captions, noise_like((2, 4, 8, 8), 1), transfer)
    columns = [[], [(adapter, 0.5)]]
    both = transferred(tiny, trail, captions, columns, transfer)
    alone = [
        transferred(tiny, trail[:, [row]], captions.take([row]), [adapters], transfer)
        for row, adapters in enumerate(columns)
    ]
    assert torch.allclose(both, torch.cat(alone), atol=1e-5)
    assert torch.allclose(transferred(tiny, trail, captions, columns, transfer, Work(batch=2)), both, atol=1e-5)
    plain = transferred(tiny, trail, captions, [[], []], transfer)
    assert torch.allclose(both[0], plain[0], atol=1e-5) and (both[1] - plain[1]).abs().max() > 1e-3


def masks(count: int) -> torch.Tensor:
    """The lower right quarter, by whole latents."""
    mask = torch.zeros(count, 1, 8, 8)
    mask[:, :, 4:, 4:] = 1
    return mask


@pytest.mark.parametrize(("strength", "guidance"), [(0.8, 1.0), (0.8, 3.0), (1.0, 3.0)])
def test_within_a_mask_is_diffusers_inpainting(tiny: Base, strength: float, guidance: float) -> None:
    latents = noise_like((1, 4, 8, 8))
    transfer = Transfer(10, strength, "noise", guidance, "", solver="ddim")
    ours = edit(tiny, latents, transfer, masks=masks(1))
    slow = by_diffusers(
        tiny,
        StableDiffusionInpaintPipeline,
        [CAPTIONS[0]],
        transfer,
        image=latents,
        mask_image=masks(1).repeat_interleave(2, -1).repeat_interleave(2, -2),
        masked_image_latents=latents,
        height=16,
        width=16,
    )
    assert (ours - slow).abs().max() < 1e-5 * slow.abs().max().clamp(min=1)


@pytest.fixture(params=["epsilon", "v_prediction"])
def filler(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    """A tiny base that was made to fill holes."""
    build_tiny(request.param, takes=9).save_pretrained(tmp_path / "filler")
    return open_tiny(tmp_path / "filler")


@pytest.mark.parametrize(("strength", "guidance"), [(0.8, 1.0), (0.5, 3.0), (1.0, 3.0)])
def test_a_base_that_fills_holes_does_as_in_diffusers(filler: Base, strength: float, guidance: float) -> None:
    generator = torch.Generator().manual_seed(4)
    pictures, holes = torch.rand(2, 3, 16, 16, generator=generator), masks(2).repeat_interleave(2, -1)
    holes = holes.repeat_interleave(2, -2)
    beside = filler.surroundings(pictures, holes)
    latents, captions = noise_like((2, 4, 8, 8)), filler.condition(CAPTIONS).beside(beside)
    transfer = Transfer(10, strength, "noise", guidance, solver="ddim")
    trail = trail_to_noise(filler, latents, captions, noise_like((2, 4, 8, 8), 1), transfer, filling=True)
    ours = transferred(filler, trail[-1:], captions, [()] * 2, transfer)
    slow = by_diffusers(
        filler,
        StableDiffusionInpaintPipeline,
        CAPTIONS,
        transfer,
        image=latents,
        mask_image=holes,
        masked_image_latents=filler.encode(torch.where(holes.bool(), 0.5, pictures)).mean,
        height=16,
        width=16,
    )
    assert (ours - slow).abs().max() < 1e-5 * slow.abs().max().clamp(min=1)
    unseen = filler.condition(CAPTIONS)
    assert not torch.allclose(ours, transferred(filler, trail[-1:], unseen, [()] * 2, transfer), atol=1e-2)


def test_a_base_that_fills_holes_sees_nothing_unless_told(filler: Base) -> None:
    latents, time = noise_like((2, 4, 8, 8)), torch.full((2,), 500)
    captions = filler.condition(CAPTIONS)
    hidden = filler.surroundings(torch.rand(2, 3, 16, 16), torch.ones(2, 1, 16, 16))
    assert torch.equal(filler.predict(latents, time, captions), filler.predict(latents, time, captions.beside(hidden)))


@pytest.mark.parametrize("start", ["noise", "inversion"])
def test_outside_a_mask_latents_stay_and_inside_they_change(tiny: Base, start) -> None:
    latents, inside = noise_like((2, 4, 8, 8)), masks(2).bool().expand(2, 4, 8, 8)
    transfer = Transfer(4, 0.75, start, 3.0, "")
    now = edit(tiny, latents, transfer, masks=masks(2))
    assert torch.equal(now[~inside], latents[~inside])
    assert (now - latents)[inside].abs().mean() > 0.01
    assert torch.equal(edit(tiny, latents, transfer, masks=torch.zeros(2, 1, 8, 8)), latents)
    everywhere = edit(tiny, latents, transfer, masks=torch.ones(2, 1, 8, 8))
    assert torch.equal(everywhere, edit(tiny, latents, transfer))


def test_guidance_leads_away_from_the_negative_caption(tiny: Base) -> None:
    latents, plain = noise_like((1, 4, 8, 8)), Transfer(4, 0.5, "noise", 2.0)
    assert torch.equal(edit(tiny, latents, plain), edit(tiny, latents, replace(plain, negative="")))
    assert not torch.allclose(edit(tiny, latents, plain), edit(tiny, latents, replace(plain, negative="a red lake")))


@pytest.mark.parametrize(("steps", "strength", "taken"), [(10, 0.0, 0), (10, 0.05, 1), (10, 0.04, 0), (20, 0.7, 14)])
def test_the_steps_taken_are_the_nearest(steps: int, strength: float, taken: int) -> None:
    assert Transfer(steps, strength).steps_taken == taken


def test_an_xl_takes_control_too(tmp_path: Path) -> None:
    build_tiny_xl().save_pretrained(tmp_path / "xl")
    base = open_tiny(tmp_path / "xl")
    latents = noise_like((2, 4, 8, 8))
    transfer = Transfer(3, 1.0, "noise", 2.0, "")
    plain = edit(base, latents, transfer)
    assert torch.equal(plain, edit(base, latents, transfer, Control(a_net(base), edges(2), 1)))
    assert not torch.allclose(plain, edit(base, latents, transfer, Control(a_net(base, 5), edges(2), 1)), atol=1e-3)
