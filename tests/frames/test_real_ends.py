import torch

from pipeline.frames.real_ends import RealEnds, with_real_ends
from pipeline.frames.tensors import from_arrays, to_arrays


def test_real_ends_are_met_exactly_and_fade_out_over_the_reach() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = 0.4 + 0.2 * torch.rand(5, 3, 4, 4, generator=generator)
    first, second = (0.3 + 0.4 * torch.rand(3, 4, 4, generator=generator) for _ in range(2))
    alphas = torch.linspace(0, 1, 5)
    met = with_real_ends(frames, alphas, first, second, 0.5)
    assert torch.allclose(met[0], first) and torch.allclose(met[-1], second)
    assert torch.allclose(met[2], frames[2], atol=1e-6)
    assert torch.allclose(met[1], frames[1] + 0.5 * (first - frames[0]))
    assert torch.equal(with_real_ends(frames, alphas, first, second, 0.0), frames)


def test_a_films_frames_are_corrected_one_by_one_as_its_segments_are_as_a_whole() -> None:
    generator = torch.Generator().manual_seed(1)
    film = to_arrays(0.4 + 0.2 * torch.rand(7, 3, 4, 4, generator=generator))
    pictures = 0.3 + 0.4 * torch.rand(3, 3, 4, 4, generator=generator)
    alphas = [[0.0, 0.2, 0.6, 1.0], [0.0, 0.5, 0.7, 1.0]]
    corrected = RealEnds(film, pictures, [0, 3, 6], alphas, 0.5)
    whole = [
        with_real_ends(from_arrays(film[3 * n : 3 * n + 4]), torch.tensor(alphas[n]), pictures[n], pictures[n + 1], 0.5)
        for n in range(2)
    ]
    expected = to_arrays(torch.cat([whole[0][:-1], whole[1]]))
    assert len(corrected) == 7
    assert all((found == frame).all() for found, frame in zip(corrected, expected, strict=True))
    assert all((found == frame).all() for found, frame in zip(corrected[-2:], expected[-2:], strict=True))


def test_a_loops_last_segment_leads_back_to_its_first_frame() -> None:
    generator = torch.Generator().manual_seed(2)
    film = to_arrays(0.4 + 0.2 * torch.rand(4, 3, 4, 4, generator=generator))
    pictures = 0.3 + 0.4 * torch.rand(2, 3, 4, 4, generator=generator)
    alphas = [[0.0, 0.4, 1.0], [0.0, 0.7, 1.0]]
    corrected = RealEnds(film, pictures, [0, 2], alphas, 0.5)
    there = with_real_ends(from_arrays(film[:3]), torch.tensor(alphas[0]), pictures[0], pictures[1], 0.5)
    back = with_real_ends(from_arrays([*film[2:], film[0]]), torch.tensor(alphas[1]), pictures[1], pictures[0], 0.5)
    expected = to_arrays(torch.cat([there[:2], back[:2]]))
    assert all((found == frame).all() for found, frame in zip(corrected, expected, strict=True))
