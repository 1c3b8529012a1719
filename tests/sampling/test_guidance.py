import torch

from pipeline.base.noise_path import Level
from pipeline.sampling.guidance import guided, rescaled


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def test_rescaling_brings_the_spread_back_by_its_share() -> None:
    given, guided = noise(2), 4 * noise(2) + 0.1
    assert torch.equal(rescaled(guided, given, 0.0), guided)
    back = rescaled(guided, given, 1.0)
    assert torch.allclose(back.std(dim=(1, 2, 3)), given.std(dim=(1, 2, 3)))
    assert torch.allclose(rescaled(guided, given, 0.25), 0.75 * guided + 0.25 * back, atol=1e-6)


def test_guidance_acts_below_a_level_of_noise_alone() -> None:
    def predict(latents: torch.Tensor, level: Level) -> torch.Tensor:
        without, given = latents.chunk(2)
        return torch.cat([without, given + 1])

    latents = noise(2)
    noisy, clean, pure = Level(900.0, 0.2, 0.98), Level(300.0, 0.8, 0.6), Level(999.0, 0.0, 1.0)
    everywhere, inside = guided(predict, 3.0), guided(predict, 3.0, below=2.0)
    for level in (noisy, clean, pure):
        assert torch.allclose(everywhere(latents, level), latents + 3, atol=1e-5)
    assert torch.allclose(inside(latents, clean), latents + 3, atol=1e-5)
    assert torch.equal(inside(latents, noisy), latents + 1) and torch.equal(inside(latents, pure), latents + 1)
