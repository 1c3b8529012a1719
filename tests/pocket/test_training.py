from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from pipeline.landscapes.world import HELD_OUT, VOCABULARY
from pipeline.parallel import parallel_map
from pipeline.pocket import progress
from pipeline.pocket.autoencoder import encode_all, train_autoencoder
from pipeline.pocket.denoiser import DENSE_CENTRE, DENSE_WIDTH, draw_timesteps, take_weights, train_denoiser
from pipeline.pocket.layout import build_scheduler, build_unet, save_pocket
from pipeline.pocket.optimizers import ViewedMuon, adamw, as_matrix, muon_and_adamw
from pipeline.pocket.paintings import paint_captioned, paint_texture
from pipeline.pocket.progress import Training, batches, warmed_cosine
from pipeline.pocket.tokenizer import build_tokenizer
from pipeline.sections import PocketSection

SETTINGS = PocketSection(
    seed=3, init_from=None, paintings=16, textures=0, autoencoder_steps=2, autoencoder_batch=2, autoencoder_rate=1e-3,
    decoder_steps=2, decoder_rate=1e-3, keep_encoder=False, latent_noise=0.1, unet_steps=2, unet_batch=2,
    unet_rate=1e-3, caption_dropout=0.5, between=0.5, ema=0.9,
)  # fmt: skip
CPU = torch.device("cpu")


def ignore(values: dict[str, float], step: int) -> None:
    pass


def test_inner_weights_carry_over_to_other_latents_and_to_no_other_layout() -> None:
    torch.manual_seed(0)
    earlier, unet = build_unet(), build_unet()
    earlier.conv_in, earlier.conv_out = nn.Conv2d(8, 64, 3), nn.Conv2d(64, 8, 3)
    first = unet.conv_in.weight.clone()
    take_weights(unet, earlier)
    assert torch.equal(unet.conv_in.weight, first)
    theirs = earlier.state_dict()
    for name, weight in unet.state_dict().items():
        assert name.startswith(("conv_in.", "conv_out.")) or torch.equal(weight, theirs[name]), name
    earlier.conv_norm_out = nn.GroupNorm(8, 32)
    with pytest.raises(ValueError, match=r"another layout: conv_norm_out"):
        take_weights(unet, earlier)


def test_timesteps_crowd_where_shapes_are_decided_and_reach_both_ends() -> None:
    alphas = build_scheduler().alphas_cumprod
    drawn = draw_timesteps(20_000, alphas, torch.Generator().manual_seed(0))
    assert drawn.min() == 0 and drawn.max() >= 998
    ratio = 0.5 * ((1 - alphas[drawn]).log() - alphas[drawn].clamp(min=1e-12).log())
    near = ((ratio - DENSE_CENTRE).abs() < DENSE_WIDTH).double().mean()
    grid = torch.arange(1000)
    uniform = 0.5 * ((1 - alphas[grid]).log() - alphas[grid].clamp(min=1e-12).log())
    by_chance = ((uniform - DENSE_CENTRE).abs() < DENSE_WIDTH).double().mean()
    assert float(near) == pytest.approx(0.75 * 0.6827 + 0.25 * float(by_chance), abs=0.02)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1, 1), (6, 4, 3, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_every_weight_as_torch_moves_its_matrix(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    if len(shape) == 2 and layout is torch.channels_last:
        pytest.skip("matrices have one layout")
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape).to(memory_format=layout))
    matrix = nn.Parameter(as_matrix(weight.detach()).clone())
    ours = ViewedMuon([weight], 0.1, weight_decay=0.01)
    theirs = torch.optim.Muon([matrix], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        weight.grad = torch.randn(shape).to(memory_format=layout)
        matrix.grad = as_matrix(weight.grad).clone()
        ours.step()
        theirs.step()
    assert torch.equal(as_matrix(weight.detach()), matrix.detach())


def test_muon_takes_the_inner_weights_and_adamw_all_others() -> None:
    model = nn.Module()
    model.conv_in, model.inner, model.embedding = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Embedding(3, 4)
    muon, other = muon_and_adamw(model, 1e-2, 1e-3)
    assert muon.weights == [model.inner.weight]
    taken = [weight for group in other.param_groups for weight in group["params"]]
    assert {id(weight) for weight in (*muon.weights, *taken)} == {id(weight) for weight in model.parameters()}
    assert len(taken) == 4


def test_previews_see_the_averaged_weights_and_leave_the_training_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PREVIEW_EVERY", 200)
    plain, watched = fresh(tmp_path / "plain.pt"), fresh(tmp_path / "watched.pt")
    plain.run(lambda step: loss_of(plain.model, step), ignore, "plain")
    seen = []

    def preview(step: int) -> None:
        assert torch.equal(watched.model.weight, watched.ema["weight"])
        seen.append(step)

    watched.run(lambda step: loss_of(watched.model, step), ignore, "watched", preview)
    assert seen == [200, 400, 600, 700]
    assert torch.equal(plain.model.weight, watched.model.weight)
    assert not torch.equal(watched.model.weight, watched.ema["weight"])


def test_the_schedule_ends_in_pure_noise() -> None:
    scheduler = build_scheduler()
    assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(0, abs=1e-6)
    assert float(scheduler.alphas_cumprod[0]) > 0.99


def test_a_whole_training_gives_a_stable_diffusion_that_loads_and_generates(tmp_path: Path) -> None:
    made = [paint_captioned(index, SETTINGS.seed, SETTINGS.between) for index in range(SETTINGS.paintings)]
    pictures = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture, _ in made])
    autoencoder = train_autoencoder(pictures, len(pictures), SETTINGS, tmp_path / "work", CPU, ignore)
    latents = encode_all(autoencoder, pictures, CPU)
    assert latents.shape == (16, 2, 16, 16, 16)
    tokenizer = build_tokenizer(VOCABULARY)
    unet, text = train_denoiser(
        latents, [captioned for _, captioned in made], tokenizer, SETTINGS, tmp_path / "work", CPU, ignore
    )
    save_pocket(tmp_path / "pocket", autoencoder, unet, text, tokenizer)
    weights = sum(path.stat().st_size for path in (tmp_path / "pocket").rglob("*.safetensors"))
    assert weights <= 36e6
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "pocket")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("snowy mountains at dawn", num_inference_steps=1).images[0].size == (128, 128)
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "pocket").rglob("*.json"))


def test_paintings_are_the_same_from_their_seed_and_some_lie_between_two_captions() -> None:
    made = [paint_captioned(index, 0, 0.5)[1] for index in range(40)]
    assert made == [paint_captioned(index, 0, 0.5)[1] for index in range(40)]
    mixed = [item for item in made if item.mix > 0]
    assert 10 <= len(mixed) <= 30
    assert any(item.first != item.second for item in mixed)
    assert all(paint_captioned(index, 0, 0.0)[1].mix == 0 for index in range(10))


def test_trained_paintings_stay_clear_of_the_held_out_seeds() -> None:
    """Seeds of paintings are seed * 10 million + index."""
    assert HELD_OUT > 99 * 10_000_000 + 9_999_999


def test_pictures_come_in_order_from_many_processes() -> None:
    serial = [paint_texture(index, 1) for index in range(3)]
    parallel = list(parallel_map(partial(paint_texture, seed=1), range(3), workers=2))
    assert all((a == b).all() for a, b in zip(serial, parallel, strict=True))


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, 3, generator=generator)
    return (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()


def fresh(path: Path) -> Training:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return Training(model, [adamw(list(model.parameters()), 0.05)], steps=700, ema_decay=0.9, checkpoint=path)


def test_a_killed_pocket_training_goes_on_exactly(tmp_path: Path) -> None:
    whole = fresh(tmp_path / "whole.pt")
    whole.run(lambda step: loss_of(whole.model, step), ignore, "whole")

    killed = fresh(tmp_path / "killed.pt")

    def loss_until_killed(step: int) -> torch.Tensor:
        if step == 600:  # after the checkpoint at 500
            raise KeyboardInterrupt
        return loss_of(killed.model, step)

    with pytest.raises(KeyboardInterrupt):
        killed.run(loss_until_killed, ignore, "killed")
    resumed = fresh(tmp_path / "killed.pt")
    assert resumed.step == 500
    resumed.run(lambda step: loss_of(resumed.model, step), ignore, "resumed")
    assert torch.equal(whole.model.weight, resumed.model.weight)
    assert torch.equal(whole.ema["weight"], resumed.ema["weight"])
    resumed.use_average()
    assert torch.allclose(resumed.model.weight, torch.ones(1, 3), atol=0.05)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    training = fresh(tmp_path / "nan.pt")
    with pytest.raises(FloatingPointError, match="step 49"):
        training.run(lambda step: loss_of(training.model, step) * float("nan"), ignore, "nan")


def test_the_rate_warms_up_and_falls() -> None:
    rates = [warmed_cosine(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 20) and max(rates) == 1 and rates[-1] < 0.02
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_batches_take_everything_once_an_epoch() -> None:
    made = list(batches(count=10, batch=4, steps=5, seed=0))
    flat = torch.cat(made).tolist()
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert all(torch.equal(a, b) for a, b in zip(made, batches(10, 4, 5, seed=0), strict=True))


def test_a_layer_without_a_gradient_ends_the_training(tmp_path: Path) -> None:
    model = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 1)})
    training = Training(model, [adamw(list(model.parameters()), 1e-3)], 12, 0.9, tmp_path / "model.pt")

    def cut_off(step: int) -> torch.Tensor:
        return model["second"](model["first"](torch.ones(1, 2)).detach()).sum()

    with pytest.raises(RuntimeError, match=r"2 weights get no gradient, first\.weight first"):
        training.run(cut_off, ignore, "cut off")
