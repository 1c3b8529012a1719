import torch

from pipeline.sampling.guidance import rescaled


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def test_rescaling_brings_the_spread_back_by_its_share() -> None:
    given, guided = noise(2), 4 * noise(2) + 0.1
    assert torch.equal(rescaled(guided, given, 0.0), guided)
    back = rescaled(guided, given, 1.0)
    assert torch.allclose(back.std(dim=(1, 2, 3)), given.std(dim=(1, 2, 3)))
    assert torch.allclose(rescaled(guided, given, 0.25), 0.75 * guided + 0.25 * back, atol=1e-6)
