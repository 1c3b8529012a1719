import pytest
import torch

from pipeline.processes.chunks import in_chunks


def test_chunks_are_as_large_as_there_is_room() -> None:
    assert in_chunks(5, 2, lambda chunk: (chunk.start, chunk.stop)) == [(0, 2), (2, 4), (4, 5)]
    assert in_chunks(5, None, lambda chunk: (chunk.start, chunk.stop)) == [(0, 5)]
    assert in_chunks(3, 0, lambda chunk: chunk.start) == in_chunks(3, -1, lambda chunk: chunk.start) == [0, 1, 2]
    assert in_chunks(0, 4, lambda chunk: chunk.start) == []


def test_memory_that_runs_out_halves_the_chunks_and_nothing_is_done_twice(capsys: pytest.CaptureFixture[str]) -> None:
    done = []

    def work(chunk: slice) -> None:
        if chunk.stop - chunk.start > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        done.extend(range(10)[chunk])

    in_chunks(10, None, work)
    assert done == list(range(10))
    said = capsys.readouterr()
    assert "10 at once do not fit into memory: continuing with 5" in said.out + said.err

    def hopeless(chunk: slice) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_chunks(4, None, hopeless)
