import pytest
import torch

from pipeline.base.posterior import Posterior
from pipeline.training.draws import draw_batch, validation_batch
from pipeline.training.examples import Encoded, Example
from tests.paths import PATHS
from tests.tiny import caption_of
from tests.training.settings import SETTINGS

PATH = PATHS["epsilon"]
EMPTY = caption_of(torch.zeros(1, 3, 2))


def examples(count: int, std: float = 0.1) -> list[Example]:
    generator = torch.Generator().manual_seed(11)
    return [
        Example(
            f"{number}.png",
            f"digest {number}",
            Encoded(
                Posterior(torch.randn(1, 4, 8, 8, generator=generator), torch.full((1, 4, 8, 8), std)),
                caption_of(torch.full((1, 3, 2), 1.0 + number)),
                Posterior(torch.full((1, 4, 8, 8), -7.0), torch.zeros(1, 4, 8, 8)),
            ),
            "a red hill",
        )
        for number in range(count)
    ]


def drawn(count: int = 2, step: int = 0, **changes: object):  # noqa: ANN201
    settings = SETTINGS.model_copy(update=changes)
    return draw_batch(examples(count), settings, PATH, EMPTY, step, range(settings.batch * settings.accumulation))


def test_every_draw_has_its_own_noise_and_an_epoch_takes_every_example_once() -> None:
    assert len({tuple(noise.flatten().tolist()) for noise in drawn(1, batch=4).noise}) == 4
    epoch = drawn(4, step=3, batch=4)
    assert sorted(epoch.conditioning["embedding"][:, 0, 0].tolist()) == [1, 2, 3, 4]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_of_a_step_are_the_whole_step_whoever_draws_them(count: int) -> None:
    """Accumulation and processes cut a step into parts; what is drawn depends on the place in the step alone."""
    whole = drawn(3, step=5, batch=6)
    settings = SETTINGS.model_copy(update={"batch": 6 // count, "accumulation": count})
    parts = [draw_batch(examples(3), settings, PATH, EMPTY, 5, range(first, 6, count)) for first in range(count)]
    for read in (lambda b: b.clean, lambda b: b.noise, lambda b: b.times, lambda b: b.conditioning["embedding"]):
        together = torch.empty_like(read(whole))
        for first, part in enumerate(parts):
            together[first::count] = read(part)
        assert torch.equal(together, read(whole))


def test_noise_offset_moves_the_channel_means() -> None:
    spread = [float(drawn(batch=64, noise_offset=offset).noise.mean(dim=(2, 3)).std()) for offset in (0.0, 0.5)]
    assert spread[0] == pytest.approx(1 / 8, abs=0.03)  # the mean of 8 x 8 unit Gaussians
    assert spread[1] == pytest.approx((1 / 64 + 0.25) ** 0.5, abs=0.08)


def test_dropped_captions_are_empty_and_as_many_as_asked_for() -> None:
    dropped = (drawn(batch=400, caption_dropout=0.2).conditioning["embedding"] == 0).all(dim=(1, 2)).double().mean()
    assert float(dropped) == pytest.approx(0.2, abs=0.06)
    assert not (drawn(batch=50).conditioning["embedding"] == 0).any()


def test_half_of_the_draws_are_mirrored_where_flips_are_asked_for() -> None:
    mirrored = (drawn(batch=200, flip=True).clean == -7).all(dim=(1, 2, 3)).double().mean()
    assert float(mirrored) == pytest.approx(0.5, abs=0.1)
    assert not (drawn(batch=50).clean == -7).any()


def test_latents_are_drawn_from_the_posterior() -> None:
    one = examples(1, std=0.3)
    batch = draw_batch(one, SETTINGS.model_copy(update={"batch": 50}), PATH, EMPTY, 0, range(50))
    assert float((batch.clean - one[0].posterior.mean).std()) == pytest.approx(0.3, rel=0.05)


def test_validation_is_the_same_in_every_run_and_for_every_setting() -> None:
    one, again = validation_batch(examples(1)[0], PATH), validation_batch(examples(1)[0], PATH)
    assert torch.equal(one.noise, again.noise) and one.times.tolist() == [100, 300, 500, 700, 900]
    assert torch.equal(one.clean, again.clean) and one.conditioning["embedding"].shape == (5, 3, 2)
