import numpy as np
import pytest
import torch

from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.evaluation.naturalness import SHARES, denoising_errors, naturalness
from pipeline.images.painter import paint
from pipeline.images.world import HELD_OUT, caption, draw_scene
from tests.declarations import ROOT
from tests.tiny import open_tiny


def test_the_error_is_that_of_one_picture_and_one_timestep_at_a_time(tiny: StableDiffusion) -> None:
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    captions = tiny.condition(["a red hill", "a blue lake", ""])
    expected = []
    for one, said in zip(latents, captions, strict=True):
        errors = []
        for number, share in enumerate(SHARES):
            noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(number))
            at = torch.tensor([int(share * 1000)])
            with torch.no_grad():
                found = tiny.predict(tiny.schedule.add_noise(one[None], noise[None], at), at, said[None])
            errors.append(float((found - tiny.schedule.target(one[None], noise[None], at)).square().mean()))
        expected.append(sum(errors) / len(errors))
    for batch in (None, 2):
        assert denoising_errors(tiny, latents, captions, batch).tolist() == pytest.approx(expected, rel=1e-4)


def test_a_cross_fade_is_less_natural_than_pictures_of_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the pocket, with paintings that it has never seen; else the measure would be wrong."""
    pocket = open_tiny(ROOT / "models/pocket")
    scenes = [draw_scene(HELD_OUT + 7_000_000 + number) for number in range(16)]
    pictures = (
        torch.from_numpy(np.stack([paint(scene, 128, 128) for scene in scenes])).permute(0, 3, 1, 2).float() / 255
    )
    captions = pocket.condition([caption(scene) for scene in scenes])
    ends = pictures[:8], captions[:8]
    others = pictures[8:], captions[8:]
    faded = (pictures[:8] + pictures[8:]) / 2, (captions[:8] + captions[8:]) / 2
    assert naturalness(pocket, ends, ends) == 1
    both = tuple(torch.cat(parts) for parts in zip(ends, others, strict=True))
    assert naturalness(pocket, faded, both) > 1.3  # type: ignore[arg-type]
    assert naturalness(pocket, others, ends) == pytest.approx(1, abs=0.25)
