from collections.abc import Callable

import pytest
import torch

from pipeline.base.conditioning import Conditioning
from pipeline.base.protocol import Base
from pipeline.distances.perceptual import perceptual
from pipeline.evaluation.captions import mixed, positions_between
from pipeline.evaluation.measurement import Reference, measure, shrink
from tests.distances.samples import picture, stack

CAPTIONS = Conditioning({"embedding": torch.tensor([[[0.0]], [[10.0]], [[30.0]]])})


def test_captions_between_keyframes_are_linear_in_alpha() -> None:
    found = mixed(CAPTIONS, positions_between([[0, 0.25, 0.5, 1], [0, 0.1, 1]]))["embedding"]
    assert found.shape == (3, 1, 1)
    assert found.flatten().tolist() == pytest.approx([2.5, 5, 12])


def test_captions_of_a_loop_lead_back_to_the_first_keyframe() -> None:
    found = mixed(CAPTIONS, positions_between([[0, 0.5, 1], [0, 0.5, 1], [0, 0.2, 1]]))["embedding"]
    assert found.flatten().tolist() == pytest.approx([5, 20, 24])


def test_two_frames_a_segment_have_no_captions_between() -> None:
    assert mixed(CAPTIONS, positions_between([[0, 1], [0, 1]]))["embedding"].shape == (0, 1, 1)


def test_pictures_are_shrunk_to_the_longer_side_and_as_far_as_the_metric_can_see() -> None:
    pictures = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    small = shrink(pictures, 32, 16)
    assert small.shape == (2, 3, 16, 32)
    assert small[0, 0, 0, 0] == pytest.approx(pictures[0, 0, :4, :4].mean().item())
    assert shrink(pictures, 32, 31).shape == (2, 3, 31, 62)
    assert shrink(pictures, 500, 16) is pictures


@pytest.mark.parametrize("loop", [False, True])
def test_a_loop_is_measured_back_to_its_first_frame(fresh_tiny: Callable[[], Base], loop: bool) -> None:
    tiny = fresh_tiny()
    coffee, rocket = stack(picture(name)[:64, :64] for name in ("coffee", "rocket"))
    frames = torch.stack([coffee, (coffee + rocket) / 2, rocket, (2 * coffee + rocket) / 3])
    keyframes, stops = (frames[[0, 2]], [0, 2]) if loop else (frames[[0, 3]], [0, 3])
    reference = Reference(keyframes, keyframes * 0.9, tiny.condition(["a cup", "a rocket"]), stops, loop)
    alphas = [[0, 0.5, 1], [0, 0.67, 1]] if loop else [[0, 0.3, 0.6, 1]]
    found = measure(frames, alphas, reference, tiny, max_side=32)
    small = shrink(frames, 32, 16)
    following = torch.cat([small[1:], small[:1]]) if loop else small[1:]
    expected = perceptual(small[: len(following)], following)
    assert found.distances.tolist() == pytest.approx(expected.tolist())
    assert found.figures["neighbours_sum"] == pytest.approx(expected.sum().item())
    assert found.figures["ppl"] == pytest.approx(expected.sum().item() / (2 if loop else 1))
    # The frames at keyframes are the keyframes themselves, and so are nearer than the floor.
    assert found.figures["endpoints_psnr"] == 100 and found.figures["endpoints_worst_psnr_gap"] < -50
    copied = measure(frames, alphas, reference, tiny, max_side=32, generated_ends=False)
    assert not [name for name in copied.figures if name.startswith("endpoints")]
    assert copied.figures["naturalness"] == found.figures["naturalness"]
