import pytest
import torch

from pipeline.base.noise_path import Level
from pipeline.base.protocol import Base
from pipeline.sampling.captions import sample_captions
from pipeline.sampling.solver import sample
from tests.reference import merged, random_adapters


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_each_sample_has_its_own_adapter_weights_and_guidance_is_its_formula(tiny: Base, guidance: float) -> None:
    one, two = random_adapters(tiny.denoiser, 2)
    given = [[(one, 0.0)], [(one, 1.0), (two, 0.5)]]
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    conditioning, empty = tiny.condition(["a red hill", "a blue lake"]), tiny.condition([""])["embedding"]
    made = sample_captions(tiny, noise, conditioning, given, steps=4, guidance=guidance)
    for row, pairs in enumerate(given):
        denoiser = merged(tiny.denoiser, pairs)
        caption = conditioning.take([row])["embedding"]

        def predict(
            x: torch.Tensor, level: Level, caption: torch.Tensor = caption, denoiser: torch.nn.Module = denoiser
        ) -> torch.Tensor:
            without, with_caption = (denoiser(x, level.time, words).sample for words in (empty, caption))
            return without + guidance * (with_caption - without)

        alone = sample(noise[row : row + 1], predict, tiny.path, 4)
        assert torch.allclose(made[row], alone[0], atol=1e-3)
