import pytest
import torch
from torch.nn import functional as F

from pipeline.editing.kept import edges_kept, manner_of, style_distance


def soft(count: int, seed: int, side: int = 64) -> torch.Tensor:
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)


def mean(style: torch.Tensor) -> torch.Tensor:
    return manner_of(style).mean(0)


def test_edges_are_kept_by_another_colour_and_lost_by_another_picture() -> None:
    pictures = soft(4, 0)
    assert torch.allclose(edges_kept(pictures, pictures), torch.ones(4), atol=1e-5)
    paler = 0.4 + 0.5 * pictures
    assert (edges_kept(pictures, paler) > 0.9).all()
    assert (edges_kept(pictures, soft(4, 9)).abs() < 0.5).all()
    halfway = edges_kept(pictures, (pictures + soft(4, 9)) / 2)
    assert (halfway > edges_kept(pictures, soft(4, 9))).all() and (halfway < edges_kept(pictures, paler)).all()


def test_pictures_without_edges() -> None:
    flat = torch.full((1, 3, 32, 32), 0.5)
    assert float(edges_kept(flat, 0.5 * flat)) == 1.0
    assert float(edges_kept(flat, soft(1, 0, 32))) == 0.0


def test_the_manner_is_the_same_wherever_in_the_picture() -> None:
    pictures = soft(3, 1)
    mirrored = style_distance(pictures, mean(pictures.flip(-1).flip(-2)))
    coarse_and_red = F.avg_pool2d(soft(3, 2), 8).repeat_interleave(8, -1).repeat_interleave(8, -2)
    coarse_and_red[:, 1:] *= 0.2
    assert (mirrored < 0.5 * style_distance(pictures, mean(coarse_and_red))).all()
    assert torch.allclose(style_distance(pictures[:1], mean(pictures[:1])), torch.zeros(1), atol=1e-6)


def test_a_step_towards_a_style_is_nearer_to_it() -> None:
    pictures, style = soft(4, 3), soft(4, 4)
    style[:, 0] = 1 - 0.3 * style[:, 0]
    away = [float(style_distance(torch.lerp(pictures, style, share), mean(style)).mean()) for share in (0.0, 0.5, 1.0)]
    assert away[0] > away[1] > away[2]


def test_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        edges_kept(soft(1, 0), soft(1, 0, 32))
