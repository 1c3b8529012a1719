import pytest
import torch

from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.sampling.guidance import rescaled, sample_captions
from pipeline.sampling.solver import sample
from tests.reference import merged, random_adapters


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_each_sample_has_its_own_adapter_weight_and_guidance_is_its_formula(
    tiny: StableDiffusion, guidance: float
) -> None:
    adapters, weights = random_adapters(tiny.unet, 1), torch.tensor([[0.0, 1.0]])
    conditioning, empty = tiny.condition(["a red hill", "a blue lake"]), tiny.condition([""])
    made = sample_captions(tiny, noise(2), conditioning, adapters, weights, steps=4, guidance=guidance)
    for place in range(2):
        unet = merged(tiny.unet, adapters, [float(weights[0, place])])

        def predict(x: torch.Tensor, t: int, place: int = place, unet: torch.nn.Module = unet) -> torch.Tensor:
            without, given = unet(x, t, empty).sample, unet(x, t, conditioning[place : place + 1]).sample
            return without + guidance * (given - without)

        alone = sample(noise(2)[place : place + 1], predict, tiny.schedule, 4)
        assert torch.allclose(made[place], alone[0], atol=1e-3)


def test_rescaling_brings_the_spread_back_by_its_share() -> None:
    given, guided = noise(2), 4 * noise(2) + 0.1
    assert torch.equal(rescaled(guided, given, 0.0), guided)
    back = rescaled(guided, given, 1.0)
    assert torch.allclose(back.std(dim=(1, 2, 3)), given.std(dim=(1, 2, 3)))
    assert torch.allclose(rescaled(guided, given, 0.25), 0.75 * guided + 0.25 * back, atol=1e-6)
