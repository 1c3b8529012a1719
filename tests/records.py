"""Records as CUDA has them, made on the CPU: what Python does is done once, and only the tensors' operations again."""

from collections.abc import Callable

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pipeline.sampling import recorded


def record_on_cpu(monkeypatch: pytest.MonkeyPatch, record: Callable[..., Callable[..., torch.Tensor]]) -> None:
    """Let everything be recorded, by `record`."""
    monkeypatch.setattr(recorded, "records", lambda device: True)
    monkeypatch.setattr(recorded, "reserved_memory", lambda empty=True: 0)
    monkeypatch.setattr(recorded, "room_for", lambda size: True)
    monkeypatch.setattr(recorded, "record", record)


def traced(launches: list[int]) -> Callable[..., Callable[..., torch.Tensor]]:
    """A `record` that traces work without gradients. launches: gets the number of samples of each launch."""

    def record(work: recorded.Work, inputs: tuple[torch.Tensor, ...]) -> Callable[..., torch.Tensor]:
        module = make_fx(work)(*[each.clone() for each in inputs])

        def launch(*given: torch.Tensor) -> torch.Tensor:
            launches.append(len(given[0]))
            return module(*given).clone()

        return launch

    return record
