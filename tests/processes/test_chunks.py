import json
from pathlib import Path

import pytest
import torch

from pipeline.processes.chunks import in_chunks
from tests.processes.launched import launch


def test_chunks_are_as_large_as_there_is_room() -> None:
    assert in_chunks(5, 2, lambda chunk: (chunk.start, chunk.stop)) == [(0, 2), (2, 4), (4, 5)]
    assert in_chunks(5, None, lambda chunk: (chunk.start, chunk.stop)) == [(0, 5)]
    assert in_chunks(3, 0, lambda chunk: chunk.start) == in_chunks(3, -1, lambda chunk: chunk.start) == [0, 1, 2]
    assert in_chunks(0, 4, lambda chunk: chunk.start) == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.05 GB, other allocations: 9.01 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_memory_that_runs_out_halves_the_chunks_and_nothing_is_done_twice(
    capsys: pytest.CaptureFixture[str], error: RuntimeError
) -> None:
    done = []

    def work(chunk: slice) -> None:
        if chunk.stop - chunk.start > 2:
            raise error
        done.extend(range(10)[chunk])

    in_chunks(10, None, work)
    assert done == list(range(10))
    said = capsys.readouterr()
    assert "10 at once do not fit into memory: continuing with 5" in said.out + said.err

    def hopeless(chunk: slice) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_chunks(4, None, hopeless)

    def broken(chunk: slice) -> None:
        done.append(chunk.stop)
        raise RuntimeError("The size of tensor a must match")

    with pytest.raises(RuntimeError, match="must match"):
        in_chunks(4, None, broken)
    assert done[10:] == [4], "only memory that runs out is a reason to try again"


WORK = """
import json, sys
import torch
from pipeline.processes.chunks import decided, in_chunks, one_each
from pipeline.processes.joining import join_processes

accelerator = join_processes(torch.device("cpu"))
rank = accelerator.process_index
done = []

def work(chunk):
    if rank == 1 and chunk.stop - chunk.start > 1:
        raise torch.OutOfMemoryError("CUDA out of memory")
    done.append([chunk.start, chunk.stop])
    return {"at": torch.arange(chunk.start, chunk.stop) + 0.1}

def dealt(count, most):
    done.clear()
    parts = in_chunks(count, most, work, accelerator)
    return {"done": list(done), "all": torch.cat([part["at"] for part in parts]).tolist() if parts else []}

said = {
    "more": dealt(10, 2), "even": dealt(5, None), "fewer": dealt(1, 4), "none": dealt(0, 2),
    "each": list(one_each("abcde", lambda letter: letter + str(rank), accelerator)),
    "decided": decided(lambda: rank + 0.5, accelerator),
}
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(said, file)
"""


def test_chunks_are_dealt_out_and_every_process_gets_all(tmp_path: Path) -> None:
    """The second process has little memory: it alone cuts its chunks more finely, and nobody sees it in the results."""
    script = tmp_path / "work.py"
    script.write_text(WORK, encoding="utf-8")
    done = launch(script, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "2 at once do not fit into memory: continuing with 1" in done.stdout
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    assert first["more"]["done"] == [[0, 2], [2, 4], [4, 6]]
    assert second["more"]["done"] == [[6, 7], [7, 8], [8, 9], [9, 10]]
    assert (first["even"]["done"], second["even"]["done"]) == ([[0, 3]], [[3, 4], [4, 5]])
    assert (first["fewer"]["done"], second["fewer"]["done"]) == ([[0, 1]], [])
    for said in (first, second):
        for name, count in (("more", 10), ("even", 5), ("fewer", 1), ("none", 0)):
            assert said[name]["all"] == pytest.approx([number + 0.1 for number in range(count)]), name
        assert said["each"] == ["a0", "b1", "c0", "d1", "e0"]
        assert said["decided"] == 0.5


FAULTS = {
    "an error of the second process": (
        "rank == 1",
        "raise ValueError('a broken frame')",
        "[rank0]: ValueError: a broken frame",
    ),
    "an error of the first process": (
        "rank == 0",
        "raise ValueError('a broken frame')",
        "[rank0]: ValueError: a broken frame",
    ),
    "no memory in the second": (
        "rank == 1",
        "raise torch.OutOfMemoryError('CUDA out')",
        "[rank0]: torch.OutOfMemoryError: CUDA out",
    ),
    "a user's mistake": ("True", "raise UserError(Problem('here', 'is a mistake', 'Mend it'))", "here: is a mistake."),
    "the second is killed": (
        "rank == 1",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "processes was ended by SIGKILL",
    ),
}
FAULTY = """
import os, signal, sys
import torch
from pipeline.errors import Problem, UserError
from pipeline.processes.chunks import in_chunks
from pipeline.processes.joining import join_processes

accelerator = join_processes(torch.device("cpu"))
rank = accelerator.process_index

def work(chunk):
    if {when}:
        {fault}

try:
    in_chunks(4, 1, work, accelerator)
finally:
    print("cleaned up", rank, flush=True)
"""


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_of_one_process_ends_all_with_one_message(tmp_path: Path, fault: str) -> None:
    when, what, message = FAULTS[fault]
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY.format(when=when, fault=what), encoding="utf-8")
    done = launch(script)
    assert done.returncode in ((137,) if "killed" in fault else (1,)), done.stderr
    errors = [line for line in done.stderr.splitlines() if message in line and not line.startswith(" ")]
    assert len(errors) == 1, done.stderr
    assert done.stdout.count("cleaned up 0") == 1
