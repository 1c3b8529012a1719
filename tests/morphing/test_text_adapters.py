"""Morphs between keyframes whose adapters change how captions are read."""

from dataclasses import replace

import pytest
import torch

from pipeline.adapters.mixing import mixed_adapters
from pipeline.base.conditioning import Conditioning
from pipeline.base.protocol import Base
from pipeline.film import Film, FilmSettings, Keyframe
from pipeline.morphing.engine import Recipe, adapter_weights_at, morph_segment
from pipeline.morphing.interpolation import slerp
from pipeline.sampling.captions import predictor, sample_captions
from pipeline.sampling.guidance import guided
from pipeline.sampling.solver import sample
from tests.text_adapters import random_text_adapters, read_alone

ALPHAS = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
CAPTIONS = ("a red hill", "a blue lake")
RECIPE = Recipe(steps=3, inversion_steps=3, guidance=2.0, negative="a hill")


def film_of(base: Base, styled: bool) -> tuple[Film, list[Keyframe]]:
    one, two, style = random_text_adapters(base, 3)
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    given = [
        Keyframe(picture, caption, ((own, weight),), ((style, 0.4),) if styled else ())
        for picture, caption, own, weight in zip(pictures, CAPTIONS, (one, two), (1.0, 0.7), strict=True)
    ]
    return Film(base, given, FilmSettings(RECIPE, frames=3, pacing="linear")), given


@pytest.mark.parametrize("styled", [False, True])
@torch.no_grad()
def test_each_keyframe_is_read_with_its_own_adapter_and_frames_between_mix_what_was_read(
    tiny: Base, styled: bool
) -> None:
    film, given = film_of(tiny, styled)
    acting = [(*keyframe.adapters, *keyframe.style) for keyframe in given]
    for keyframe, encoded, adapters in zip(given, film.keyframes, acting, strict=True):
        own = read_alone(tiny, keyframe.caption, keyframe.adapters)
        assert torch.allclose(encoded.conditioning["embedding"], own["embedding"], atol=1e-5)
        in_frames = read_alone(tiny, keyframe.caption, adapters)
        assert torch.allclose(encoded.of_frames["embedding"], in_frames["embedding"], atol=1e-5)
        assert styled is not torch.allclose(own["embedding"], in_frames["embedding"], atol=1e-3)
    frames = morph_segment(tiny, *film.keyframes, film.noise, ALPHAS, RECIPE)
    read = [
        Conditioning.stack([read_alone(tiny, text, adapters) for text in (RECIPE.negative, caption)])
        for caption, adapters in zip(CAPTIONS, acting, strict=True)
    ]
    for frame, alpha in zip(frames, ALPHAS.tolist(), strict=True):
        at = torch.tensor([alpha], dtype=torch.float64)
        both = Conditioning.lerp(read[0], read[1], at.repeat(2))
        adapters, weights = adapter_weights_at(*film.keyframes, at)
        with mixed_adapters(tiny.denoiser, adapters, torch.cat([weights, weights], dim=1)):
            predict = guided(predictor(tiny, both), RECIPE.guidance)
            alone = sample(slerp(film.noise[0], film.noise[1], at), predict, tiny.path, RECIPE.steps)
        assert torch.allclose(frame, alone[0], atol=1e-4), alpha


@torch.no_grad()
def test_ends_are_samples_with_the_same_adapters_and_a_style_that_reads_is_not_inverted(tiny: Base) -> None:
    (plain, given), (over, _) = film_of(tiny, styled=False), film_of(tiny, styled=True)
    assert torch.equal(plain.noise, over.noise)
    recipe = replace(RECIPE, negative="")
    frames = morph_segment(tiny, *plain.keyframes, plain.noise, ALPHAS, recipe)
    for row, frame in ((0, frames[0]), (1, frames[-1])):
        own = given[row].adapters
        caption = plain.keyframes[row].conditioning
        alone = sample_captions(tiny, plain.noise[row : row + 1], caption, [own], steps=3, guidance=2.0)
        assert torch.allclose(frame, alone[0], atol=1e-4)
