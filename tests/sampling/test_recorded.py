import gc
import weakref
from collections.abc import Callable

import pytest
import torch

from pipeline.sampling import recorded
from pipeline.sampling.recorded import Recorded
from tests.records import record_on_cpu, traced

CPU = torch.device("cpu")


def test_the_second_call_is_recorded_and_later_ones_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    launches, calls = list[int](), list[int]()
    record_on_cpu(monkeypatch, traced(launches))
    offset = torch.tensor([10.0])

    def work(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x * y + offset

    twice = Recorded(work, CPU)
    found = [twice(torch.full((2,), float(n)), torch.tensor(3.0)) for n in range(4)]
    assert [tensor.tolist() for tensor in found] == [[10, 10], [13, 13], [16, 16], [19, 19]], "one overwrote another"
    assert calls == [2, 2] and launches == [2, 2, 2]
    offset += 1  # in place: a record reads it where it lies
    assert twice(torch.ones(2), torch.tensor(3.0)).tolist() == [14, 14]
    # Of another shape or type it is called as it is.
    assert twice(torch.ones(3), torch.tensor(3.0)).tolist() == [14, 14, 14]
    assert twice(torch.ones(2), torch.tensor(3)).tolist() == [14, 14]
    assert calls == [2, 2, 3, 2] and launches == [2, 2, 2, 2]


def test_elsewhere_than_on_cuda_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "record", lambda *given: pytest.fail("recorded"))
    calls = list[int]()

    def work(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x + 1

    once = Recorded(work, CPU)
    assert [float(once(torch.tensor(float(n)))) for n in range(3)] == [1, 2, 3] and len(calls) == 3
    assert recorded.records(torch.device("cuda:1")) and not recorded.records(torch.device("mps"))


@pytest.mark.parametrize("left", [119, 120])
def test_a_record_needs_more_memory_than_the_first_call_took(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], left: int
) -> None:
    """The first call takes 100 bytes; torch has 400, of which 70 are not in use."""
    launches, taken = list[int](), [300, 400]
    given_back, room = recorded.reserved_memory, recorded.room_for
    record_on_cpu(monkeypatch, traced(launches))
    monkeypatch.setattr(recorded, "reserved_memory", given_back)
    monkeypatch.setattr(recorded, "room_for", room)
    recorded.go_on_without.cache_clear()
    emptied = list[int]()
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: taken.pop(0) if len(taken) > 1 else taken[0])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 330)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (left - 70, 10_000))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0)
    work = Recorded(lambda x: x + 1, CPU)
    assert [float(work(torch.zeros(1))) for _ in range(4)] == [1, 1, 1, 1]
    assert emptied == [1], "what was kept from before counts as taken"
    assert len(launches) == (3 if left == 120 else 0)
    said = capsys.readouterr()
    assert (said.out + said.err).count("without a CUDA graph") == (left == 119)


def test_the_memory_that_a_process_may_have_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of 1,000 bytes, of which torch has 60 and uses 50: 50 are left."""
    recorded.go_on_without.cache_clear()
    for name, value in {"memory_reserved": 60, "memory_allocated": 50, "get_per_process_memory_fraction": 0.1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (900, 1000))
    assert recorded.room_for(50) and not recorded.room_for(51)


def test_what_cannot_be_recorded_is_called_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded.go_on_without.cache_clear()
    tries = list[int]()

    def refuse(work: recorded.Work, inputs: tuple[torch.Tensor, ...]) -> Callable[..., torch.Tensor]:
        tries.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nat the second line")

    record_on_cpu(monkeypatch, refuse)
    work = Recorded(lambda x: x + 1, CPU)
    assert [float(work(torch.tensor(float(n)))) for n in range(4)] == [1, 2, 3, 4] and tries == [1]
    said = capsys.readouterr()
    assert (said.out + said.err).count("operation not permitted when stream is capturing") == 1
    assert "second line" not in said.out + said.err


def test_a_record_goes_with_its_object_and_not_when_python_looks_for_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = list[weakref.ref]()

    def record(work: recorded.Work, inputs: tuple[torch.Tensor, ...]) -> Callable[..., torch.Tensor]:
        def launch(*given: torch.Tensor) -> torch.Tensor:
            return work(*given)

        launches.append(weakref.ref(launch))
        return launch

    record_on_cpu(monkeypatch, record)
    gc.disable()
    try:
        work = Recorded(lambda x: x + 1, CPU)
        for _ in range(3):
            work(torch.zeros(1))
        assert launches[0]() is not None
        del work
        assert launches[0]() is None
    finally:
        gc.enable()
