import pytest
import torch

from pipeline.morphing.parts import in_parts


def test_parts_are_as_large_as_there_is_room() -> None:
    assert in_parts(5, 2, lambda part: (part.start, part.stop)) == [(0, 2), (2, 4), (4, 5)]
    assert in_parts(5, None, lambda part: (part.start, part.stop)) == [(0, 5)]
    assert in_parts(3, -1, lambda part: part.start) == [0, 1, 2]
    assert in_parts(0, 4, lambda part: part.start) == []


def test_memory_that_runs_out_halves_the_parts_and_nothing_is_done_twice(capsys: pytest.CaptureFixture[str]) -> None:
    done = []

    def work(part: slice) -> None:
        if part.stop - part.start > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        done.extend(range(10)[part])

    in_parts(10, None, work)
    assert done == list(range(10))
    said = capsys.readouterr()
    assert "10 at once do not fit into memory: on with 5" in said.out + said.err

    def hopeless(part: slice) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_parts(4, None, hopeless)
