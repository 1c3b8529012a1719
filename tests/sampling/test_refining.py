"""SDXL's base and refiner against diffusers' two pipelines, one after the other, and what must hold exactly."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)

from pipeline.adapters.mixing import Adapter
from pipeline.base.conditioning import Conditioning, Control
from pipeline.base.noise_path import Level
from pipeline.base.opening import open_base
from pipeline.base.protocol import Base
from pipeline.editing.transfer import Transfer, Work, trail_to_noise, transferred
from pipeline.grid import sample_grid
from pipeline.sampling.captions import sample_captions
from pipeline.sampling.refining import Refinement, Refiner
from pipeline.sampling.solver import Solver
from pipeline.sections import RefinerBase
from tests.reference import random_adapters
from tests.tiny import build_tiny_refiner, build_tiny_xl, open_tiny, section

CAPTIONS = ["a red hill", "a blue lake"]


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, its refiner, and another base."""
    folder = tmp_path_factory.mktemp("xl")
    build_tiny_xl(request.param).save_pretrained(folder / "base")
    build_tiny_refiner(request.param).save_pretrained(folder / "refiner")
    build_tiny_xl(request.param, seed=11).save_pretrained(folder / "other")
    return {name: folder / name for name in ("base", "refiner", "other")}


@pytest.fixture(scope="module")
def base(folders: dict[str, Path]) -> Base:
    return open_tiny(folders["base"])


@functools.cache
def opened(folder: Path) -> Base:
    """As a refiner. Opened once: nothing here changes it."""
    return open_base(RefinerBase(**section(folder).model_dump()), torch.device("cpu"))


def refiner_in(folder: Path, start: float = 0.5) -> Refiner:
    return Refiner(opened(folder), start)


def noise_like(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, 8, 12, generator=torch.Generator().manual_seed(seed))


def sampled(base: Base, refiner: Refiner | None, solver: Solver = "midpoint", guidance: float = 3.0, **more):
    refinement = refiner and refiner.refinement(CAPTIONS, None if guidance == 1 else "")
    captions = base.condition(CAPTIONS)
    return sample_captions(
        base, noise_like(), captions, steps=8, guidance=guidance, solver=solver, refinement=refinement, **more
    )


def edited(base: Base, refiner: Refiner | None, transfer: Transfer, adapters=((), ()), work=None, **more):
    captions, latents = base.condition(CAPTIONS), noise_like(seed=2)
    refinement = refiner and refiner.refinement(CAPTIONS, None if transfer.guidance == 1 else "")
    trail = trail_to_noise(base, latents, captions, noise_like(seed=1), transfer)
    return transferred(base, trail, captions, adapters, transfer, work or Work(), refinement=refinement, **more)


def pipes(folders: dict[str, Path], refiner: str, first: type):
    """The base's pipeline of a kind, and its refiner's."""
    own = StableDiffusionXLImg2ImgPipeline.from_pretrained(folders[refiner], add_watermarker=False)
    before = first.from_pretrained(folders["base"], add_watermarker=False)
    for pipe in (before, own):
        pipe.scheduler = DDIMScheduler.from_config(before.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
    return before, own


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() < 1e-5 * theirs.abs().max().clamp(min=1))


@pytest.mark.parametrize("refiner", ["refiner", "other"])
@pytest.mark.parametrize(("start", "guidance"), [(0.5, 1.0), (0.8, 3.0), (0.3, 3.0)])
def test_samples_are_diffusers_base_and_then_its_refiner(
    folders, base: Base, refiner: str, start: float, guidance: float
) -> None:
    ours = sampled(base, refiner_in(folders[refiner], start), "ddim", guidance)
    first, second = pipes(folders, refiner, StableDiffusionXLPipeline)
    shared = {"num_inference_steps": 8, "guidance_scale": guidance, "output_type": "latent"}
    latents = first(CAPTIONS, latents=noise_like(), height=16, width=24, denoising_end=start, **shared).images
    theirs = second(CAPTIONS, image=latents, denoising_start=start, **shared).images
    assert close(ours, theirs)
    assert not torch.allclose(ours, sampled(base, None, "ddim", guidance), atol=1e-2)


@pytest.mark.parametrize("refiner", ["refiner", "other"])
@pytest.mark.parametrize(("start", "strength"), [(0.5, 0.75), (0.75, 1.0), (0.5, 0.625)])
def test_edits_are_diffusers_image_to_image_and_then_its_refiner(
    folders, base: Base, refiner, start, strength: float
) -> None:
    """Also where strength leaves the base a single step of eight."""
    transfer = Transfer(8, strength, "noise", 3.0, "", "ddim")
    ours = edited(base, refiner_in(folders[refiner], start), transfer)
    first, second = pipes(folders, refiner, StableDiffusionXLImg2ImgPipeline)
    shared = {"num_inference_steps": 8, "guidance_scale": 3.0, "output_type": "latent"}
    latents = first(
        CAPTIONS,
        image=noise_like(seed=2),
        strength=strength,
        denoising_end=start,
        generator=torch.Generator().manual_seed(1),
        **shared,
    ).images
    theirs = second(CAPTIONS, image=latents, denoising_start=start, **shared).images
    assert close(ours, theirs)
    assert not torch.allclose(ours, edited(base, None, transfer), atol=1e-2)


def test_an_edit_that_begins_below_is_the_refiners_own_image_to_image(folders, base: Base) -> None:
    transfer = Transfer(8, 0.375, "noise", 3.0, "", "ddim")
    ours = edited(base, refiner_in(folders["refiner"]), transfer)
    _, pipe = pipes(folders, "refiner", StableDiffusionXLImg2ImgPipeline)
    theirs = pipe(
        CAPTIONS,
        image=noise_like(seed=2),
        strength=0.375,
        num_inference_steps=8,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
    ).images
    assert close(ours, theirs)


@pytest.mark.parametrize("solver", ["midpoint", "ddim"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_same_weights_as_refiner_change_no_bit(folders, base: Base, solver: Solver, guidance: float) -> None:
    for start in (0.2, 0.5, 0.95):
        again = refiner_in(folders["base"], start)
        assert again.base.denoiser is not base.denoiser
        assert torch.equal(sampled(base, again, solver, guidance), sampled(base, None, solver, guidance))


@pytest.mark.parametrize("start", ["noise", "inversion"])
def test_the_same_weights_as_refiner_change_no_bit_of_an_edit(folders, base: Base, start) -> None:
    masks = torch.zeros(2, 1, 8, 12)
    masks[:, :, 4:] = 1
    for guidance, strength in ((1.0, 0.75), (3.0, 1.0)):
        transfer = Transfer(6, strength, start, guidance, "")
        again = refiner_in(folders["base"])
        assert torch.equal(edited(base, again, transfer), edited(base, None, transfer))
        assert torch.equal(edited(base, again, transfer, masks=masks), edited(base, None, transfer, masks=masks))


def test_each_step_asks_the_one_whose_it_is(folders, base: Base) -> None:
    """With the second-order solver, too, whose last midpoint of the base lies below the handover."""
    refiner, asked = refiner_in(folders["refiner"], 0.6), dict[str, list[float]](base=[], refiner=[])
    hooks = [
        each.denoiser.register_forward_pre_hook(
            lambda module, inputs, times=asked[name]: times.append(float(inputs[1].flatten()[0]))
        )
        for name, each in (("base", base), ("refiner", refiner.base))
    ]
    sampled(base, refiner, guidance=1.0)
    for hook in hooks:
        hook.remove()
    times = [level.time for level in base.path.levels(8)[::-1]]  # 876, 751, 626, 501, 376, ... 1
    assert times[3:5] == [501, 376] and base.path.handover(0.6) == 400
    assert len(asked["base"]) == 5 and len(asked["refiner"]) == 4
    assert min(asked["base"]) > times[4] > max(asked["refiner"])


def test_the_handover_is_where_diffusers_has_it() -> None:
    from tests.paths import PATHS

    for done, cutoff in ((0.8, 200), (0.3, 700), (0.9995, 0), (0.0001, 1000)):
        assert PATHS["epsilon"].handover(done) == cutoff


def test_adapters_act_in_the_bases_steps_alone(folders, base: Base) -> None:
    (adapter,) = random_adapters(base.denoiser, 1)
    adapters: list[list[tuple[Adapter, float]]] = [[(adapter, 1.0)], []]
    other, transfer = refiner_in(folders["refiner"], 0.5), Transfer(6, 1.0, "noise")
    with_it, without = edited(base, other, transfer, adapters), edited(base, other, transfer)
    assert torch.allclose(with_it[1], without[1], atol=1e-5) and not torch.allclose(with_it[0], without[0], atol=1e-2)
    late = replace(transfer, strength=0.5)  # begins at the handover
    assert torch.equal(edited(base, other, late, adapters), edited(base, other, late))
    own = sampled(base, other, adapters=adapters)
    assert torch.allclose(own[1], sampled(base, other)[1], atol=1e-5)
    assert not torch.allclose(own[0], sampled(base, other)[0], atol=1e-2)


def test_control_acts_in_the_bases_steps_alone(folders, base: Base) -> None:
    torch.manual_seed(5)
    net = ControlNetModel.from_unet(base.denoiser, conditioning_embedding_out_channels=(4, 8)).eval()
    for weight in net.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.3)
    asked = list[float]()
    net.register_forward_pre_hook(lambda module, inputs: asked.append(float(inputs[1].flatten()[0])))
    control = Control(net.requires_grad_(False), torch.rand(2, 3, 16, 24), 1.0)
    other, transfer = refiner_in(folders["refiner"], 0.5), Transfer(8, 1.0, "noise")
    early = edited(base, other, transfer, control=control)
    levels = base.path.levels(8)[::-1]
    assert len(asked) == 5 and min(asked) > levels[4].time  # four steps, and the first of them asks twice
    assert torch.equal(early, edited(base, other, replace(transfer, control_until=0.5), control=control))
    assert not torch.allclose(early, edited(base, other, transfer), atol=1e-3)


def test_batches_of_any_size_and_a_grid_give_the_same(folders, base: Base) -> None:
    other = refiner_in(folders["refiner"], 0.5)
    transfer = Transfer(6, 1.0, "inversion", 3.0, "")
    together, apart = (edited(base, other, transfer, work=Work(batch=batch)) for batch in (None, 2))
    assert torch.allclose(together, apart, atol=1e-4)
    (adapter,) = random_adapters(base.denoiser, 1)
    one, two = (
        sample_grid(
            base, CAPTIONS[0], adapter, seeds=[0, 1], weights=[0.0, 1.0], size=(16, 24), steps=4, guidance=2.0,
            refiner=refiner, batch=batch,
        )
        for refiner, batch in ((other, None), (other, 2))
    )  # fmt: skip
    assert one.shape == (2, 2, 3, 16, 24) and torch.allclose(one, two, atol=1e-4)
    again = refiner_in(folders["base"], 0.5)
    plain, same = (
        sample_grid(
            base, CAPTIONS[0], adapter, seeds=[0], weights=[0.0], size=(16, 24), steps=4, guidance=2.0, refiner=refiner,
        )
        for refiner in (None, again)
    )  # fmt: skip
    assert torch.equal(plain, same) and not torch.allclose(plain[0, 0], one[0, 0], atol=1e-3)


def test_guidance_without_a_negative_caption_is_refused(folders, base: Base) -> None:
    refinement = refiner_in(folders["refiner"]).refinement(CAPTIONS, None)
    levels: tuple[Level, ...] = base.path.levels(4)[::-1]
    with pytest.raises(ValueError, match="negative"):
        refinement.taking_over(lambda x, level: x, base.path, levels, 2.0)


def test_the_refiner_reads_captions_with_its_one_encoder_and_an_aesthetic_score(folders) -> None:
    own = refiner_in(folders["refiner"]).base
    given, away = own.condition(["a red hill", ""]), own.condition_negative(["a red hill", ""])
    shapes = {name: tuple(tensor.shape) for name, tensor in given.tensors.items()}
    assert shapes == {"embedding": (2, 64, 24), "pooled": (2, 20), "aesthetic_score": (2, 1)}
    assert given["aesthetic_score"].tolist() == [[6.0], [6.0]] and away["aesthetic_score"].tolist() == [[2.5], [2.5]]
    assert torch.equal(given["embedding"], away["embedding"]) and bool(given["embedding"][1].any())


def test_rows_are_taken_with_their_captions(folders) -> None:
    refinement: Refinement = refiner_in(folders["refiner"]).refinement(CAPTIONS, "")
    one = refinement.take([1, 1]).captions
    expected = refinement.base.condition([CAPTIONS[1]] * 2)
    assert isinstance(one, Conditioning) and torch.allclose(one["embedding"], expected["embedding"], atol=1e-6)
