import itertools

import numpy as np
import pytest
import skimage.color
import torch
from scipy.ndimage import convolve, convolve1d, gaussian_filter

from pipeline.distances.features import extract, feature_distance, lab
from pipeline.distances.perceptual import perceptual
from pipeline.evaluation.fidelity import psnr
from tests.distances.samples import NAMES, PHOTOGRAPHS, distorted, picture, stack, tensor, wide, window


def distance(first, second):
    return perceptual(tensor(first), tensor(second)).item()


def distances_from(plain, pictures):
    return feature_distance(extract(tensor(plain)), extract(stack(pictures))).tolist()


def grating(angle, phase, wavelength=4.0, side=64):
    y, x = np.mgrid[:side, :side]
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wavelength + phase)
    return np.repeat(0.5 + 0.3 * wave[..., None], 3, axis=2)


# As a person would judge


@pytest.mark.parametrize("name", NAMES)
def test_stronger_distortions_are_farther(name):
    plain = picture(name)
    for kind, pictures in distorted(name).items():
        distances = distances_from(plain, pictures)
        assert distances[0] > 0.0005, kind
        assert all(np.diff(distances) > 0), f"{kind}: {np.round(distances, 4)}"


@pytest.mark.parametrize("name", NAMES)
def test_a_slight_distortion_is_much_nearer_than_another_picture(name):
    plain = picture(name)
    another = min(distances_from(plain, [picture(other) for other in NAMES if other != name]))
    kinds = distorted(name)
    slight = [kinds["shift right"][0], kinds["blur"][2], kinds["noise"][1], kinds["warm tint"][1]]
    medium = [pictures[len(pictures) // 2] for pictures in kinds.values()]
    assert another > 0.2
    assert max(distances_from(plain, slight)) < another / 5
    assert max(distances_from(plain, medium)) < another


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_shift_is_nearer_than_a_blur_of_equal_pixel_error(name):
    # Pixel by pixel the two are equally wrong; to the eye the moved picture is the same picture.
    plain, moved = picture(name), window(wide(name), 1, 0)
    target = psnr(tensor(plain), tensor(moved)).item()
    blurs = [gaussian_filter(plain, (sigma, sigma, 0)) for sigma in np.linspace(0.5, 6, 30)]
    equal = min(blurs, key=lambda pixels: abs(psnr(tensor(plain), tensor(pixels)).item() - target))
    assert abs(psnr(tensor(plain), tensor(equal)).item() - target) < 0.5
    assert distance(plain, equal) > 2.5 * distance(plain, moved)


@pytest.mark.parametrize(("one", "two"), list(itertools.combinations(PHOTOGRAPHS[:4], 2)))
def test_a_cross_fade_lies_between_its_ends(one, two):
    first, second = picture(one), picture(two)
    shares = np.linspace(0, 1, 9)
    fades = [(1 - share) * first + share * second for share in shares]
    ends = distance(first, second)
    from_first = distances_from(first, fades)
    assert all(np.diff(from_first) > 0)
    assert distance(first, fades[4]) > ends / 4
    assert distance(second, fades[4]) > ends / 4


def test_hue_counts_where_lightness_is_equal():
    lightness = np.full((32, 32), 60.0)
    red, green = (
        skimage.color.lab2rgb(np.stack([lightness, np.full((32, 32), a), np.zeros((32, 32))], 2)) for a in (30.0, -30.0)
    )
    # 60 units of a* apart, at half weight, in hundreds.
    assert distance(red, green) == pytest.approx(0.3, abs=0.002)


def test_the_phase_of_fine_texture_counts_little_and_its_direction_much():
    # Pixel by pixel, a quarter of a wave aside and a quarter turn are equally far.
    upright = grating(0, 0, wavelength=6)
    turned = distance(upright, grating(np.pi / 2, 0, wavelength=6))
    assert distance(upright, grating(0, np.pi / 2, wavelength=6)) < turned / 6
    assert distance(upright, grating(np.pi / 4, 0, wavelength=6)) > turned / 2


def test_the_same_pair_is_about_equally_far_at_every_size():
    first, second = tensor(wide("astronaut")), tensor(wide("coffee"))
    at = {}
    for size in ((64, 64), (128, 128), (250, 131), (512, 512)):
        pair = [
            torch.nn.functional.interpolate(p, size, mode="bicubic", antialias=True).clamp(0, 1)
            for p in (first, second)
        ]
        at[size] = perceptual(*pair).item()
    assert max(at.values()) < 1.2 * min(at.values()), at


# By the definition


def test_flat_pictures_differ_by_their_colour_alone():
    # No contrast anywhere, so what remains is the Euclidean distance of mean L*, a* / 2, b* / 2, in hundreds.
    black, white = np.zeros((64, 48, 3)), np.ones((64, 48, 3))
    assert distance(black, white) == pytest.approx(1, abs=1e-4)
    one, two = np.array([0.8, 0.2, 0.1]), np.array([0.1, 0.5, 0.9])
    weights = np.array([1, 0.5, 0.5]) / 100
    expected = np.linalg.norm((skimage.color.rgb2lab(one) - skimage.color.rgb2lab(two)) * weights)
    assert distance(white * one, white * two) == pytest.approx(expected, abs=1e-3)


def features_by_scipy(pixels):
    """The features of one picture (H, W, 3) in float64, from the description in words: scikit-image for CIELAB, scipy
    for every filter, mirrored edges, four octaves of 9 maps for 96 px."""

    def halved(plane):
        row = np.array([1, 6, 15, 20, 15, 6, 1]) / 64
        return convolve1d(convolve1d(plane, row, 0, mode="mirror"), row, 1, mode="mirror")[::2, ::2]

    def gabor(angle):
        y, x = np.mgrid[-4:5, -4:5]
        envelope = np.exp(-(x**2 + y**2) / (2 * 1.6**2))
        wave = np.cos(2 * np.pi / 4 * (x * np.cos(angle) + y * np.sin(angle)))
        even = envelope * (wave - (envelope * wave).sum() / envelope.sum())
        return np.sqrt(2) * even / (even * wave).sum()

    planes = np.moveaxis(skimage.color.rgb2lab(pixels) * [0.01, 0.005, 0.005], 2, 0)
    octaves = []
    while min(planes.shape[1:]) >= 8:
        energies = [[convolve(plane, gabor(np.pi * k / 4), mode="mirror") ** 2 for k in range(4)] for plane in planes]
        maps = [*energies[0], sum(energies[1]), sum(energies[2]), *planes]
        pooled = np.stack([halved(halved(one)) for one in maps])
        contrast = np.sqrt(pooled[:6]) / (0.05 + np.sqrt(pooled[:6].sum(0)))
        octaves.append(np.concatenate([contrast, pooled[6:]]))
        planes = np.stack([halved(plane) for plane in planes])
    return octaves


@pytest.mark.parametrize("name", NAMES)
def test_features_and_distance_equal_those_written_with_scipy(name):
    first, second = (np.clip(pixels, 0, 1).astype(np.float32) for pixels in (picture(name), distorted(name)["blur"][4]))
    expected = [features_by_scipy(pixels) for pixels in (first, second)]
    for ours, theirs in zip(extract(tensor(first)).octaves, expected[0], strict=True):
        assert np.abs(ours[0].numpy() - theirs).max() < 2e-3
    apart = [np.linalg.norm(x - y, axis=0).mean() for x, y in zip(*expected, strict=True)]
    assert distance(first, second) == pytest.approx(np.mean(apart), rel=2e-3)


def test_lab_equals_scikit_image():
    pixels = np.random.default_rng(0).random((40, 30, 3))
    pixels[0] = np.linspace(0, 0.1, 90).reshape(30, 3)  # the straight pieces near black
    ours = lab(tensor(pixels))[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - skimage.color.rgb2lab(pixels)).max() < 0.01


def test_a_grating_of_the_filters_own_wavelength_answers_as_worked_by_hand():
    # Amplitude A in L* / 100 gives the filter along it energy A^2 and the others less; the answer is A / (0.05 + root
    # of the sum).
    octave = extract(tensor(grating(0, 0.3))).octaves[0][0, :4, 4:-4, 4:-4]
    # sRGB to L* bends the wave: its amplitude is read off L* by a Fourier sum over whole periods.
    lightness = lab(tensor(grating(0, 0.3)))[0, 0, 0].double().numpy() / 100
    amplitude = 2 * abs(np.mean(lightness * np.exp(2j * np.pi * np.arange(64) / 4)))
    along = octave[0].mean().item()
    assert octave.std((1, 2)).max() < 0.01
    assert amplitude / (0.05 + 1.2 * amplitude) < along < amplitude / (0.05 + amplitude)
    assert along > 3 * octave[2].mean().item()


def test_the_triangle_inequality_holds_so_no_path_is_shorter_than_straight():
    features = extract(stack(picture(name) for name in NAMES))
    table = torch.stack([feature_distance(features[i : i + 1], features) for i in range(len(NAMES))])
    for i, j, k in itertools.permutations(range(len(NAMES)), 3):
        assert table[i, k] <= table[i, j] + table[j, k] + 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_small_change_is_a_proportionally_small_distance(name):
    # Pacing adds up small steps: a distance in squares would call half a step a quarter.
    plain = picture(name) * 0.8 + 0.1
    other = picture("retina" if name != "retina" else "coffee")
    steps = [distance(plain, plain + share * (other - plain)) for share in (0.01, 0.02, 0.04)]
    assert steps[1] / steps[0] == pytest.approx(2, rel=0.15)
    assert steps[2] / steps[1] == pytest.approx(2, rel=0.15)


def test_extremes_are_finite_and_a_speck_is_seen():
    black = torch.zeros(1, 3, 40, 24)
    speck = black.clone()
    speck[..., 20, 12] = 1
    checks = (torch.arange(40)[:, None] + torch.arange(24)).remainder(2).float().expand(1, 3, 40, 24)
    for first, second in itertools.combinations((black, 1 - black, speck, checks, 1 - checks), 2):
        far = perceptual(first, second).item()
        assert 0 < far < 3


# How it is used


def test_features_of_a_picture_do_not_depend_on_its_batch_or_on_reduced_precision_around():
    pictures = stack(picture(name) for name in NAMES)
    together = extract(pictures)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone = extract(pictures[3:4])
    assert len(together) == len(NAMES) and len(alone) == 1
    for octave, single in zip(together.octaves, alone.octaves, strict=True):
        assert torch.equal(octave[3:4], single)


def test_taking_features_once_gives_the_distances_of_taking_them_each_time():
    pictures = stack(picture(name) for name in NAMES[:4])
    features = extract(pictures)
    assert torch.equal(feature_distance(features[1:], features[:-1]), perceptual(pictures[:-1], pictures[1:]))
    assert feature_distance(features[:1], features).shape == (4,)


def test_gradients_are_neither_needed_nor_kept():
    assert not perceptual(torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32)).requires_grad


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (64, 200), (65, 64)])
def test_odd_and_small_sizes_work(size):
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert perceptual(pixels[:1], pixels[1:]).item() > 0.01
    assert perceptual(pixels[:1], pixels[:1]).item() == 0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="16 px"):
        extract(torch.rand(1, 3, 15, 64))
    with pytest.raises(ValueError, match="no pictures"):
        extract(torch.rand(0, 3, 32, 32))
    with pytest.raises(ValueError, match=r"pictures\[1\]: holds NaN"):
        extract(torch.stack([torch.rand(3, 32, 32), torch.full((3, 32, 32), torch.nan)]))
    small, large = extract(torch.rand(2, 3, 32, 32)), extract(torch.rand(3, 3, 64, 64))
    with pytest.raises(ValueError, match="one size"):
        feature_distance(small, large)
    with pytest.raises(ValueError, match="2 and 3 pictures"):
        feature_distance(small, extract(torch.rand(3, 3, 32, 32)))
