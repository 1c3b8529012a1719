import numpy as np
import torch

from pipeline.editing.edges import edges_of


def test_a_squares_edges_are_where_its_sides_are() -> None:
    picture = torch.zeros(1, 3, 32, 40)
    picture[:, :, 8:24, 10:30] = 1
    found = edges_of(picture, sigma=0.0, low=0.4, high=0.8)
    assert found.shape == picture.shape and set(found.unique().tolist()) == {0, 1}
    rows, columns = np.nonzero(found[0, 0].numpy())
    inside = (rows >= 9) & (rows <= 22) & (columns >= 11) & (columns <= 28)
    outside = (rows < 7) | (rows > 24) | (columns < 9) | (columns > 30)
    assert not inside.any() and not outside.any() and len(rows) >= 2 * (16 + 20) - 8


def test_a_weak_edge_needs_a_strong_one_that_it_goes_on_from() -> None:
    picture = torch.zeros(2, 3, 32, 32)
    picture[:, :, :, 16:] = 0.15  # a gradient of 0.6
    picture[1, :, :16, 16:] = 0.5  # of 2
    alone, together = edges_of(picture, sigma=0.0, low=0.4, high=0.8)
    assert not alone.any() and together[0, 20:, 14:18].any()


def test_a_flat_picture_has_none() -> None:
    assert not edges_of(torch.full((1, 3, 16, 16), 0.3), 1.0, 0.4, 0.8).any()
