import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipeline.base.conditioning import Conditioning
from pipeline.base.protocol import Base
from pipeline.evaluation.naturalness import SHARES, mean_errors, naturalness, picture_errors
from pipeline.landscapes.painter import paint
from pipeline.landscapes.world import HELD_OUT, caption, draw_scene
from tests.declarations import ROOT
from tests.tiny import open_tiny


def test_the_error_is_that_of_one_picture_and_one_timestep_at_a_time(tiny: Base) -> None:
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    captions = tiny.condition(["a red hill", "a blue lake", ""])
    expected = []
    for row, one in enumerate(latents):
        errors = []
        for number, share in enumerate(SHARES):
            noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(number))
            at = torch.tensor([int(share * 1000)])
            with torch.no_grad():
                found = tiny.predict(tiny.path.add_noise(one[None], noise[None], at), at, captions.take([row]))
            errors.append(float((found - tiny.path.target(one[None], noise[None], at)).square().mean()))
        expected.append(sum(errors) / len(errors))
    assert mean_errors(tiny, latents, captions).tolist() == pytest.approx(expected, rel=1e-4)


Captioned = tuple[torch.Tensor, Conditioning]


@pytest.fixture(scope="module")
def pocket() -> Base:
    return open_tiny(ROOT / "models/pocket")


@pytest.fixture(scope="module")
def paintings(pocket: Base) -> tuple[Captioned, Captioned]:
    """Two times eight paintings that the pocket has never seen, and their captions."""
    scenes = [draw_scene(HELD_OUT + 7_000_000 + number) for number in range(16)]
    pictures = torch.from_numpy(np.stack([paint(scene, 128, 128) for scene in scenes])).permute(0, 3, 1, 2).float()
    captions = pocket.condition([caption(scene) for scene in scenes])
    return (pictures[:8] / 255, captions.take(slice(8))), (pictures[8:] / 255, captions.take(slice(8, 16)))


def test_a_cross_fade_is_less_natural_than_pictures_of_the_base(
    pocket: Base, paintings: tuple[Captioned, Captioned]
) -> None:
    """Else the metric would be wrong."""
    ends, others = paintings
    half = torch.tensor([0.5])
    halfway = [Conditioning.lerp(ends[1].take([row]), others[1].take([row]), half) for row in range(8)]
    faded = (ends[0] + others[0]) / 2, Conditioning.stack(halfway)
    at_ends = picture_errors(pocket, *ends)
    assert naturalness(at_ends, at_ends) == 1
    both = torch.cat([ends[0], others[0]]), Conditioning.stack([ends[1], others[1]])
    assert naturalness(picture_errors(pocket, *faded), picture_errors(pocket, *both)) > 1.3
    assert naturalness(picture_errors(pocket, *others), at_ends) == pytest.approx(1, abs=0.25)


def test_noise_and_broken_shapes_are_unnatural_and_blur_is_not_seen(
    pocket: Base, paintings: tuple[Captioned, Captioned]
) -> None:
    pictures, captions = paintings[0]
    grain = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    changed = {
        "as it is": pictures,
        "a little noise": (pictures + 0.05 * grain).clamp(0, 1),
        "much noise": (pictures + 0.2 * grain).clamp(0, 1),
        "upside down": pictures.flip(2),
        "flat": pictures.mean((2, 3), keepdim=True).expand_as(pictures).contiguous(),
        "blurred": gaussian_blur(pictures),
    }
    plain = picture_errors(pocket, pictures, captions)
    found = {name: naturalness(picture_errors(pocket, altered, captions), plain) for name, altered in changed.items()}
    assert 1 == found["as it is"] < found["a little noise"] < found["much noise"]
    assert min(found[name] for name in ("much noise", "upside down")) > 1.5
    # An even colour has nothing in it that is hard to denoise, and a base of sharp latents finds detail hard.
    assert found["flat"] > 1.1
    assert 0.8 < found["blurred"] < 1.05, "the docstring: soft frames come out a little below 1"


def gaussian_blur(pictures: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(gaussian_filter(pictures.numpy(), (0, 0, 1, 1)))
