import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.evaluation.lpips import SMALLEST_SIDE, Lpips, expected_shapes, find_lpips_problems
from tests.distances.samples import distorted, picture, tensor


def random_weights() -> dict[str, Tensor]:
    """As a file of real weights has them; the linear ones are never negative there either."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, shape in expected_shapes().items():
        spread = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) == 4 else 0.1
        weights[key] = torch.randn(shape, generator=generator) * spread
        if key.startswith("lin"):
            weights[key] = weights[key].abs()
    weights["scaling_layer.shift"] = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    weights["scaling_layer.scale"] = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    return weights


def write(path: Path, weights: dict[str, Tensor]) -> str:
    """The file's digest, as params.yaml has it."""
    save_file(weights, path)
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights()


@pytest.fixture(scope="module")
def network(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Lpips:
    path = tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    write(path, weights)
    return Lpips.read(path, torch.device("cpu"))


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """(C, h, w) to (C', h', w'), place by place, cut at zero."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    side = weight.shape[-1]
    rows, columns = ((size - side) // stride + 1 for size in x.shape[1:])
    out = np.zeros((len(weight), rows, columns))
    for row in range(rows):
        for column in range(columns):
            patch = x[:, row * stride : row * stride + side, column * stride : column * stride + side]
            out[:, row, column] = (weight * patch).sum((1, 2, 3)) + bias
    return np.maximum(out, 0)


def pooled(x: np.ndarray) -> np.ndarray:
    rows, columns = ((size - 3) // 2 + 1 for size in x.shape[1:])
    out = np.zeros((len(x), rows, columns))
    for row in range(rows):
        for column in range(columns):
            out[:, row, column] = x[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].max((1, 2))
    return out


def by_loops(weights: dict[str, Tensor], first: Tensor, second: Tensor) -> float:
    """LPIPS of two pictures (3, H, W) in [0, 1], step by step as Zhang et al. 2018 describe it, in float64."""
    w = {key: value.double().numpy() for key, value in weights.items()}
    layers = [("net.slice1.0", 4, 2), ("net.slice2.3", 1, 2), ("net.slice3.6", 1, 1), ("net.slice4.8", 1, 1)]
    layers.append(("net.slice5.10", 1, 1))
    total = 0.0
    a, b = (
        (picture.double().numpy() * 2 - 1 - w["scaling_layer.shift"][0]) / w["scaling_layer.scale"][0]
        for picture in (first, second)
    )
    for number, (name, stride, padding) in enumerate(layers):
        if number in (1, 2):
            a, b = pooled(a), pooled(b)
        a, b = (convolved(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding) for x in (a, b))
        importance = w[f"lin{number}.model.1.weight"][0, :, 0, 0]
        places = []
        for row in range(a.shape[1]):
            for column in range(a.shape[2]):
                u, v = (x[:, row, column] / np.linalg.norm(x[:, row, column]) for x in (a, b))
                places.append((importance * (u - v) ** 2).sum())
        total += float(np.mean(places))
    return total


def test_it_equals_loops_over_places(network: Lpips, weights: dict[str, Tensor]) -> None:
    frames = torch.cat([tensor(picture(name)[:40, :48]) for name in ("coffee", "rocket", "hills")])
    expected = [by_loops(weights, frames[n], frames[n + 1]) for n in range(2)]
    assert network.neighbour_distances(frames) == pytest.approx(expected, rel=1e-4)
    assert min(expected) > 0.01


def test_equal_frames_have_no_distance_and_both_ways_are_equally_far(network: Lpips) -> None:
    one, two = tensor(picture("coffee")), tensor(picture("rocket"))
    distances = network.neighbour_distances(torch.cat([one, two, one, one]))
    assert distances[2] == 0
    assert distances[0] == distances[1] > 0
    assert network.neighbour_distances(one) == []


def test_one_layer_of_one_weight_as_worked_by_hand(weights: dict[str, Tensor]) -> None:
    """Only the first layer counts, and of it two channels, for red and green: grey gives both 1 / sqrt(2)."""
    bare = {key: torch.zeros_like(value) for key, value in weights.items()}
    bare["scaling_layer.scale"] += 1
    bare["net.slice1.0.weight"][0, 0, 5, 5] = bare["net.slice1.0.weight"][1, 1, 5, 5] = 1
    bare["lin0.model.1.weight"][0, :2] = torch.tensor([3.0, 5.0]).view(2, 1, 1)
    red, grey = (torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 32, 32) for colour in ([1.0, 0.5, 0.0], [1.0] * 3))
    # In [-1, 1] red's green channel is 0: features (1, 0) and (0.707, 0.707).
    half = 0.5**0.5
    found = Lpips(bare).neighbour_distances(torch.cat([red, grey]))
    assert found[0] == pytest.approx(3 * (1 - half) ** 2 + 5 * half**2, rel=1e-5)


def test_stronger_noise_and_blur_are_farther_even_with_random_weights(network: Lpips) -> None:
    plain = tensor(picture("astronaut"))
    for kind in ("blur", "noise"):
        pictures = [tensor(pixels) for pixels in distorted("astronaut")[kind][::2]]
        distances = [network.neighbour_distances(torch.cat([plain, other]))[0] for other in pictures]
        assert all(np.diff(distances) > 0), kind


def test_small_and_wrong_pictures_are_refused(network: Lpips) -> None:
    assert network.neighbour_distances(torch.rand(2, 3, SMALLEST_SIDE, SMALLEST_SIDE))[0] > 0
    with pytest.raises(ValueError, match="31 px"):
        network.features(torch.rand(1, 3, SMALLEST_SIDE - 1, 64))
    with pytest.raises(ValueError, match="expected 0 to 1"):
        network.features(torch.full((1, 3, 64, 64), -1.0))


# The file


def test_a_right_file_is_pinned_by_its_digest(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "alex.safetensors"
    digest = write(path, weights)
    assert find_lpips_problems(path, digest) == []
    (unpinned,) = find_lpips_problems(path, None)
    assert str(unpinned) == (
        "params.yaml: evaluate.lpips_digest: the weights must be pinned. "
        f"If the file is right, write `lpips_digest: {digest}`."
    )
    weights = {**weights, "lin0.model.1.weight": weights["lin0.model.1.weight"] * 2}
    write(path, weights)
    (changed,) = find_lpips_problems(path, digest)
    assert "has changed" in str(changed)


def test_the_error_for_a_missing_file_has_the_command_that_makes_it(tmp_path: Path) -> None:
    (problem,) = find_lpips_problems(tmp_path / "none.safetensors", None)
    assert "evaluate.lpips: there is no file" in str(problem) and "pip install lpips" in str(problem)


@pytest.mark.parametrize("key", ["lin4.model.1.weight", "net.slice3.6.bias", "scaling_layer.shift"])
def test_other_tensors_are_named(key: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    write(path, {name: value for name, value in weights.items() if name != key})
    (missing,) = find_lpips_problems(path, None)
    assert f"{key} is missing" in str(missing) and "pip install lpips" in str(missing)
    write(path, {**weights, key: torch.zeros(7)})
    (shaped,) = find_lpips_problems(path, None)
    assert f"{key} has shape (7,)" in str(shaped)


def test_a_damaged_file_is_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "alex.safetensors"
    write(path, weights)
    path.write_bytes(path.read_bytes()[:-5])
    (problem,) = find_lpips_problems(path, None)
    assert "cut off" in str(problem)
