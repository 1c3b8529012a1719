from pathlib import Path

import torch

from pipeline.pocket.autoencoder import haar_bands, train_autoencoder
from pipeline.pocket.latents import LatentNorm, fix_posterior_std, standardise
from pipeline.pocket.layout import build_autoencoder
from tests.pocket.test_training import CPU, SETTINGS, ignore


def test_standardised_latents_have_unit_statistics_and_decode_to_the_same_picture() -> None:
    torch.manual_seed(0)
    model = build_autoencoder().eval()
    pixels = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = model.encode(pixels).latent_dist
        decoded = model.decode(before.mean).sample
        mean, std = before.mean.mean(dim=(0, 2, 3)), before.mean.std(dim=(0, 2, 3))
        posterior_std = before.std / std.view(-1, 1, 1)
        standardise(model, mean, std)
        after = model.encode(pixels).latent_dist
        again = model.decode(after.mean).sample
    assert torch.allclose(after.mean.mean(dim=(0, 2, 3)), torch.zeros(16), atol=1e-4)
    assert torch.allclose(after.mean.std(dim=(0, 2, 3)), torch.ones(16), atol=1e-3)
    assert torch.allclose(after.std, posterior_std, rtol=1e-3)
    assert torch.allclose(again, decoded, atol=1e-4)


def test_the_posterior_has_the_std_that_the_decoder_can_bear_whatever_the_picture() -> None:
    torch.manual_seed(0)
    model = build_autoencoder().eval()
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    std = torch.linspace(0.1, 0.2, 16)
    with torch.no_grad():
        mean = model.encode(pixels).latent_dist.mean
        fix_posterior_std(model, std)
        posterior = model.encode(pixels).latent_dist
    assert torch.equal(posterior.mean, mean)
    assert torch.allclose(posterior.std, std.view(-1, 1, 1).expand_as(mean), rtol=1e-4)


def test_latents_get_the_running_scale_and_the_gradient_of_the_batches_own() -> None:
    generator = torch.Generator().manual_seed(0)
    norm = LatentNorm(3)
    first = 3 + 2 * torch.randn(6, 3, 4, 4, generator=generator)
    standardised = norm(first)
    assert torch.allclose(standardised.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(standardised.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-5)
    # By hand: the second batch moves the statistics by a fiftieth, and is scaled by them, not by its own.
    second = (1 + 5 * torch.randn(6, 3, 4, 4, generator=generator)).requires_grad_()
    out = norm(second)
    mean = 0.98 * first.mean(dim=(0, 2, 3)) + 0.02 * second.mean(dim=(0, 2, 3))
    std = 0.98 * first.std(dim=(0, 2, 3)) + 0.02 * second.std(dim=(0, 2, 3))
    assert torch.allclose(out, (second - mean.view(-1, 1, 1)) / std.view(-1, 1, 1), atol=1e-4)
    # Nothing is gained by larger or shifted latents, so no gradient points there.
    (gradient,) = torch.autograd.grad((out * torch.randn(out.shape, generator=generator)).sum(), second)
    assert torch.allclose(gradient.sum(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4)
    centred = second - second.mean(dim=(0, 2, 3), keepdim=True)
    assert torch.allclose((gradient * centred).sum(dim=(0, 2, 3)), torch.zeros(3), atol=1e-2)


def test_the_decoder_keeps_what_it_saw_in_training_when_latents_are_scaled_to_paintings(tmp_path: Path) -> None:
    pictures = torch.randint(256, (16, 3, 128, 128), generator=torch.Generator().manual_seed(0)).byte()
    settings = SETTINGS.model_copy(update={"decoder_steps": 0})
    model = train_autoencoder(pictures, 8, settings, tmp_path, CPU, ignore)
    ema = torch.load(tmp_path / "autoencoder.pt")["ema"]
    plain = build_autoencoder().eval()
    plain.load_state_dict({k.removeprefix("autoencoder."): v for k, v in ema.items() if k.startswith("autoencoder.")})
    pixels = pictures[:8].float() / 127.5 - 1
    with torch.no_grad():
        raw = plain.encode(pixels).latent_dist.mean
        expected = plain.decode((raw - ema["norm.mean"].view(-1, 1, 1)) / ema["norm.std"].view(-1, 1, 1)).sample
        posterior = model.encode(pixels).latent_dist
        decoded = model.decode(posterior.mean).sample
    assert torch.allclose(decoded, expected, atol=1e-3)
    assert torch.allclose(posterior.mean.std(dim=(0, 2, 3)), torch.ones(16), atol=1e-2)
    noise = SETTINGS.latent_noise * ema["norm.std"] / raw.std(dim=(0, 2, 3))
    assert torch.allclose(posterior.std, noise.view(-1, 1, 1).expand_as(posterior.std), rtol=1e-2)


def test_haar_bands_by_hand() -> None:
    picture = torch.tensor([[1.0, 2.0], [3.0, 6.0]]).view(1, 1, 2, 2)
    assert [float(band) for band in haar_bands(picture, 1)] == [-1.5, -1.0, 0.5]
    flat = torch.ones(1, 3, 8, 8)
    bands = list(haar_bands(flat, 3))
    assert [band.shape[-1] for band in bands] == [4, 4, 4, 2, 2, 2, 1, 1, 1]
    assert all(not band.any() for band in bands)


def test_with_the_encoder_kept_latents_stay_and_the_decoder_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = build_autoencoder().eval()
    before.save_pretrained(tmp_path / "before/vae")
    pictures = torch.randint(256, (16, 3, 128, 128), generator=torch.Generator().manual_seed(0)).byte()
    settings = SETTINGS.model_copy(update={"init_from": str(tmp_path / "before"), "keep_encoder": True})
    after = train_autoencoder(pictures, 16, settings, tmp_path / "work", CPU, ignore)
    pixels = pictures[:1].float() / 127.5 - 1
    with torch.no_grad():
        latents = before.encode(pixels).latent_dist.mean
        for key, weight in before.encoder.state_dict().items():
            assert torch.equal(after.encoder.state_dict()[key], weight), key
        assert torch.allclose(after.encode(pixels).latent_dist.mean, latents, atol=1e-5)
        assert torch.allclose(after.encode(pixels).latent_dist.std, torch.tensor(0.1))
        assert not torch.allclose(after.decode(latents).sample, before.decode(latents).sample)
