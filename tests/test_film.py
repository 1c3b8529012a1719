"""A film as a library call: no project, no params.yaml, nothing written."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.base.posterior import Posterior
from pipeline.base.protocol import Base
from pipeline.film import Film, FilmSettings, Keyframe, draw_latents, settings_of
from pipeline.morphing.engine import EncodedKeyframe, Recipe, adapter_weights_at, invert_keyframes, morph_segment
from tests.declarations import ROOT
from tests.reference import random_adapters

SETTINGS = FilmSettings(Recipe(steps=2, inversion_steps=2), frames=4, pacing="linear")
CAPTIONS = ("a red hill", "a blue lake", "a hill")


def keyframes(base: Base, count: int = 3) -> list[Keyframe]:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(count, 3, 16, 24, generator=generator)
    adapters = random_adapters(base.denoiser, count)
    return [Keyframe(pictures[i], CAPTIONS[i], ((adapters[i], 1.0),)) for i in range(count)]


def pictures(film: Film) -> torch.Tensor:
    return torch.stack([frame.picture for frame in film])


class Encoder:
    """A base whose posterior is the picture itself with a std of 0.1."""

    def encode(self, pictures: torch.Tensor) -> Posterior:
        return Posterior(pictures, torch.full_like(pictures, 0.1))


def test_a_picture_is_drawn_the_same_wherever_it_stands_and_others_differently() -> None:
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    drawn = draw_latents(Encoder(), pictures)
    assert torch.equal(draw_latents(Encoder(), pictures[[2, 0]]), drawn[[2, 0]])
    noise = drawn - pictures
    assert noise.std(dim=(1, 2, 3)).tolist() == pytest.approx([0.1] * 3, rel=0.05)
    assert not torch.allclose(noise[0], noise[1], atol=0.05)


def test_a_film_is_its_segments_in_a_row_with_each_keyframe_once(tiny: Base) -> None:
    given = keyframes(tiny)
    film = Film(tiny, given, SETTINGS)
    frames = list(film)
    assert [(frame.segment, round(frame.alpha, 3)) for frame in frames] == [
        (0, 0), (0, 0.333), (0, 0.667), (0, 1), (1, 0.333), (1, 0.667), (1, 1),
    ]  # fmt: skip
    assert [alphas.tolist() for alphas in film.alphas] == [pytest.approx([0, 1 / 3, 2 / 3, 1])] * 2
    latents = draw_latents(tiny, torch.stack([keyframe.picture for keyframe in given]))
    captions = tiny.condition(list(CAPTIONS))
    encoded = [EncodedKeyframe(latents[i], captions.take([i]), given[i].adapters) for i in range(3)]
    noise = invert_keyframes(tiny, encoded, SETTINGS.recipe)
    assert torch.equal(film.noise, noise) and film.noise_std == pytest.approx(float(noise.std(dim=(1, 2, 3)).mean()))
    for number, (first, second) in enumerate([(0, 1), (1, 2)]):
        segment = morph_segment(
            tiny, encoded[first], encoded[second], noise[[first, second]], film.alphas[number], SETTINGS.recipe
        )
        expected = tiny.decode(segment)
        start = 3 * number
        for row in range(1 if number else 0, 4):
            assert torch.allclose(frames[start + row].picture, expected[row], atol=1e-5)


def test_a_loop_leads_back_and_ends_before_its_first_frame(tiny: Base) -> None:
    given = keyframes(tiny, 2)
    straight = pictures(Film(tiny, given, SETTINGS))
    loop = Film(tiny, given, FilmSettings(SETTINGS.recipe, frames=4, pacing="linear", loop=True))
    frames = pictures(loop)
    assert loop.segments == [(0, 1), (1, 0)] and len(frames) == 6 and len(loop.alphas) == 2
    assert torch.allclose(frames[:4], straight, atol=1e-6)
    # The way back passes the same places.
    assert torch.allclose(frames[4:], straight[[2, 1]], atol=1e-4)


def test_frames_come_as_they_are_decoded(tiny: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first can be seen before the second segment is begun, and nothing is inverted again for a second look."""
    decoded: list[int] = []
    plain = type(tiny).decode
    monkeypatch.setattr(type(tiny), "decode", lambda self, x: (decoded.append(len(x)), plain(self, x))[1])
    film = Film(tiny, keyframes(tiny), SETTINGS)
    frames = iter(film)
    next(frames)
    assert decoded == [1] and len(film.alphas) == 1
    assert len(list(frames)) == 6 and len(list(film)) == 7


def test_a_style_is_in_the_frames_and_not_in_the_inversion(tiny: Base) -> None:
    """Or else it would change nothing of the keyframes: what is inverted with an adapter comes back with it."""
    given = keyframes(tiny, 2)
    style = random_adapters(tiny.denoiser, 3)[2]
    plain = Film(tiny, given, SETTINGS)
    over = Film(tiny, [replace(keyframe, style=((style, 0.5),)) for keyframe in given], SETTINGS)
    assert torch.equal(over.noise, plain.noise)
    frames = pictures(over)
    assert all(not torch.allclose(one, two, atol=1e-3) for one, two in zip(frames, pictures(plain), strict=True))
    own = Film(tiny, [replace(k, adapters=(*k.adapters, (style, 0.5))) for k in given], SETTINGS)
    own.noise = plain.noise
    assert torch.equal(frames, pictures(own)), "in the frames it is an adapter as any other"


def test_a_style_rises_evenly_along_the_film(tiny: Base) -> None:
    first, second = keyframes(tiny, 2)
    style = random_adapters(tiny.denoiser, 3)[2]
    rising = Film(tiny, [replace(first, style=((style, 0.0),)), replace(second, style=((style, 1.0),))], SETTINGS)
    alphas = torch.tensor([0.0, 0.25, 1.0])
    adapters, weights = adapter_weights_at(*rising.keyframes, alphas)
    assert weights[[one is style for one in adapters].index(True)].tolist() == [0.0, 0.25, 1.0]


def test_pacing_by_distance_or_by_a_list(tiny: Base) -> None:
    paced = Film(tiny, keyframes(tiny, 2), FilmSettings(SETTINGS.recipe, frames=4, pacing_spare=3))
    assert len(list(paced)) == 4
    (alphas,) = paced.alphas
    assert alphas.tolist() == sorted(alphas.tolist()) and alphas.tolist() != pytest.approx([0, 1 / 3, 2 / 3, 1])
    listed = Film(tiny, keyframes(tiny, 2), FilmSettings(SETTINGS.recipe, pacing=(0.0, 0.1, 1.0)))
    assert [frame.alpha for frame in listed] == [0, 0.1, 1]


def test_nothing_is_written_and_no_project_is_needed(
    tiny: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(pictures(Film(tiny, keyframes(tiny, 2), SETTINGS))) == 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_keyframes_are_refused(tiny: Base, count: int) -> None:
    with pytest.raises(ValueError, match=f"two keyframes or more of one size, found {count}"):
        Film(tiny, keyframes(tiny)[:count], SETTINGS)


def test_keyframes_of_two_sizes_are_refused(tiny: Base) -> None:
    small = Keyframe(torch.zeros(3, 8, 8), "a hill")
    with pytest.raises(ValueError, match=r"found 2 of \(3, 8, 8\), \(3, 16, 24\)"):
        Film(tiny, [keyframes(tiny)[0], small], SETTINGS)


def test_unasked_a_film_is_made_as_params_yaml_ships() -> None:
    from pipeline.params import load_params

    assert FilmSettings() == settings_of(load_params(ROOT / "params.yaml").morph)
