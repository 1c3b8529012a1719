import pytest

from pipeline.training.rates import learning_rate
from tests.training.settings import SETTINGS


def rates(**changes: object) -> list[float]:
    settings = SETTINGS.model_copy(update={"steps": 10, "learning_rate": 1.0, **changes})
    return [learning_rate(settings, step) for step in range(settings.steps)]


def test_the_schedules_by_hand() -> None:
    assert rates() == [1.0] * 10
    assert rates(schedule="linear") == pytest.approx([1 - step / 10 for step in range(10)])
    assert rates(schedule="cosine")[5] == pytest.approx(0.5) and rates(schedule="cosine")[9] < 0.03
    assert rates(schedule="linear", warmup=4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert rates(schedule="linear", warmup=4)[7] == pytest.approx(0.5)
    assert rates(warmup=4)[4:] == [1.0] * 6


def test_steps_are_optimizer_steps_whatever_the_accumulation() -> None:
    assert rates(schedule="cosine", accumulation=4) == rates(schedule="cosine")
