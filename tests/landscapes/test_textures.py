"""Pictures that are no landscapes: textures to train on, and the woodcut manner."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pipeline.landscapes.painter import paint
from pipeline.landscapes.textures import dead_leaves, spectral_noise
from pipeline.landscapes.woodcut import BLACK, INKS, PAPER, woodcut
from pipeline.landscapes.world import HELD_OUT, draw_scene


def amplitude_slope(picture: np.ndarray) -> float:
    """-d log(amplitude) / d log(frequency) of the picture's lightness, over the middle frequencies."""
    light = picture.astype(float).mean(axis=-1)
    amplitude = np.abs(np.fft.fft2(light - light.mean()))
    size = light.shape[0]
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    bands = np.geomspace(3 / size, 0.4, 12)
    level = [amplitude[(frequency >= low) & (frequency < high)].mean() for low, high in pairwise(bands)]
    return -np.polyfit(np.log(np.sqrt(bands[1:] * bands[:-1])), np.log(level), 1)[0]


@pytest.mark.parametrize("texture", [dead_leaves, spectral_noise])
def test_a_texture_is_a_function_of_its_seed(texture):
    first = texture(5, 96, 64)
    texture(6, 32, 32)
    assert first.shape == (64, 96, 3) and first.dtype == np.uint8
    assert np.array_equal(first, texture(5, 96, 64))
    assert not np.array_equal(first, texture(6, 96, 64))


def test_noise_has_the_slope_that_its_seed_drew():
    for seed in range(12):
        drawn = np.random.default_rng([seed, 3]).uniform(0.5, 2.5)
        # Clipping and rounding to bytes lift the faintest, highest frequencies of the steepest noise.
        assert amplitude_slope(spectral_noise(seed, 128, 128)) == pytest.approx(drawn, abs=0.35)


def test_noise_slopes_and_colours_vary():
    pictures = [spectral_noise(seed, 64, 64) for seed in range(24)]
    slopes = [amplitude_slope(picture) for picture in pictures]
    assert min(slopes) < 0.9 and max(slopes) > 1.8
    likeness = [np.corrcoef(picture[..., 0].ravel(), picture[..., 2].ravel())[0, 1] for picture in pictures]
    assert min(likeness) < 0.6 and max(likeness) > 0.9


def test_dead_leaves_have_edges_as_photographs_have():
    pictures = [dead_leaves(seed, 128, 128) for seed in range(8)]
    # Noise of the same spectrum is Gaussian in its differences (kurtosis 3): edges between flat leaves are far from it.
    for picture in pictures:
        steps = np.diff(picture.astype(float).mean(axis=-1), axis=1).ravel()
        assert ((steps - steps.mean()) ** 4).mean() / steps.var() ** 2 > 8
    assert 0.8 < np.mean([amplitude_slope(picture) for picture in pictures]) < 1.8
    # No ground is left bare: no single colour covers half of a picture.
    for picture in pictures:
        _, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
        assert counts.max() < 0.5 * 128 * 128


@pytest.mark.parametrize("size", [128, 256])
def test_a_woodcut_has_few_tones_and_bold_lines(size):
    tones = np.concatenate([[PAPER, BLACK], INKS]) * 255
    for seed in range(HELD_OUT, HELD_OUT + 4):
        picture = paint(draw_scene(seed), size, size)
        cut = woodcut(picture, seed)
        assert cut.shape == picture.shape and cut.dtype == np.uint8
        near = np.abs(cut[..., None, :].astype(float) - tones).max(axis=-1) < 12
        assert near.any(axis=-1).mean() > 0.75
        assert near[..., 2:].any(axis=(0, 1)).sum() <= 2
        black = near[..., 1]
        assert 0.1 < black.mean() < 0.85
        # An opening by two pixels of 128 removes lines thinner than that, and hardly anything is.
        width = 2 * size // 128
        windows = np.lib.stride_tricks.sliding_window_view(black, (width, width)).all(axis=(-1, -2))
        kept = np.zeros_like(black)
        for down in range(width):
            for across in range(width):
                kept[down : down + windows.shape[0], across : across + windows.shape[1]] |= windows
        assert kept.sum() > 0.85 * black.sum()


def test_a_woodcut_is_a_function_of_picture_and_seed():
    picture = paint(draw_scene(HELD_OUT), 96, 96)
    assert np.array_equal(woodcut(picture, 1), woodcut(picture, 1))
    assert not np.array_equal(woodcut(picture, 1), woodcut(picture, 2))


def test_a_woodcut_is_black_where_its_picture_is_dark():
    picture = np.full((96, 96, 3), 235, dtype=np.uint8)
    picture[48:] = 20
    cut = woodcut(picture, 0)
    assert (cut[56:] < 60).mean() > 0.95
    assert (cut[:40] > 200).mean() > 0.95
