"""The measures that benchmarks print are right where the answer is known."""

import math

import numpy as np
import pytest
import torch

from pipeline.landscapes.painter import paint
from pipeline.landscapes.world import HELD_OUT, draw_scene
from tests.benchmarks.bands import change_shares, coherences, power_shares, spectra
from tests.benchmarks.classifier import Reader, accuracies, frechet_distance, labels
from tests.benchmarks.orbs import count_orbs


def test_frechet_distance_of_known_normal_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(4000, 3, dtype=torch.float64, generator=generator)
    # Whitened, so that mean 0 and covariance 1 hold to rounding.
    raw -= raw.mean(0)
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(raw.T))).T
    assert frechet_distance(white, white) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(white, white + torch.tensor([3.0, 4.0, 0.0])) == pytest.approx(25)
    # Variances 1 and 4 in each of three directions: 3 (1 + 4 - 2 sqrt(4)).
    assert frechet_distance(white, 2 * white) == pytest.approx(3)
    turn = torch.tensor([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    stretched = white * torch.tensor([1.0, 3.0, 1.0], dtype=torch.float64)
    root = torch.linalg.eigvals(torch.cov(stretched.T) @ torch.cov((stretched @ turn.T).T)).real.sqrt().sum()
    expected = 2 * (1 + 9 + 1) - 2 * float(root)
    assert frechet_distance(stretched, stretched @ turn.T) == pytest.approx(expected) and expected > 1


def test_accuracy_counts_what_is_read_rightly() -> None:
    scenes = [draw_scene(seed) for seed in range(200)]
    torch.manual_seed(0)
    reader = Reader()
    with torch.no_grad():
        for head in reader.heads.values():
            head.weight.zero_()
            head.bias.copy_(torch.tensor([1.0, *[0.0] * (len(head.bias) - 1)]))  # always the first value
    found = accuracies(reader, torch.rand(200, 3, 128, 128), scenes)
    for name, truth in labels(scenes).items():
        assert found[name] == pytest.approx(float((truth == 0).double().mean()))
        assert 0 < found[name] < 1 and not math.isnan(found[name])


def waves(cycles: int, size: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """A grey picture (1, 3, 128, 128) of so many cycles across."""
    across = torch.arange(128) / 128
    wave = 0.5 + size * torch.sin(2 * math.pi * (cycles * across + shift))
    return wave.expand(1, 3, 128, 128).clone()


def test_detail_is_counted_in_the_ring_of_its_frequency() -> None:
    true = spectra(waves(12, 0.2) + waves(24, 0.2) + waves(48, 0.2))
    half = spectra(waves(12, 0.2) + waves(24, 0.1) + waves(48, 0.2, shift=0.5))
    assert power_shares(half, true) == pytest.approx([1, 0.25, 1], abs=1e-3)
    assert coherences(half, true) == pytest.approx([1, 1, -1], abs=1e-3)
    # A quarter of a cycle apart, two waves have nothing in common.
    assert coherences(spectra(waves(24, shift=0.25)), spectra(waves(24)))[1] == pytest.approx(0, abs=1e-3)


def test_change_along_a_way_is_that_of_its_neighbours() -> None:
    true = torch.cat([waves(24, size) for size in (0.0, 0.1, 0.2)])[None]
    twice = torch.cat([waves(24, size) for size in (0.0, 0.2, 0.4)])[None]
    assert change_shares(twice, true)[1] == pytest.approx(4, rel=1e-3)
    # Flicker is change without a way to go.
    flicker = torch.cat([waves(24, size) for size in (0.1, 0.3, 0.1)])[None]
    assert change_shares(flicker, true)[1] == pytest.approx(4, rel=1e-3)


def test_suns_and_moons_are_counted() -> None:
    scenes = [draw_scene(HELD_OUT + number) for number in range(60)]
    pictures = [paint(scene, 128, 128).astype(float) / 255 for scene in scenes]
    counts = [count_orbs(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    assert all(count <= scene.orb for count, scene in zip(counts, scenes, strict=True))
    there = [(picture, scene) for picture, scene, count in zip(pictures, scenes, counts, strict=True) if count]
    assert len(there) >= 0.85 * sum(scene.orb for scene in scenes)
    doubled = []
    for picture, scene in there:
        half, black = picture[:, :64], np.zeros((128, 64, 3))
        alone, twice = (count_orbs(np.concatenate([half, other], 1), scene) for other in (black, half))
        assert twice == 2 * alone
        doubled.append(twice)
    assert doubled.count(2) > 5
