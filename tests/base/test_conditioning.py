import pytest
import torch

from pipeline.base.conditioning import Conditioning


def bundle(*values: float) -> Conditioning:
    """One row a value: an embedding (3, 2) and a pooled caption (4,) that hold nothing else."""
    rows = torch.tensor(values, dtype=torch.float32)
    return Conditioning({"embedding": rows.view(-1, 1, 1).expand(-1, 3, 2), "pooled": -rows.view(-1, 1).expand(-1, 4)})


def values(conditioning: Conditioning) -> list[float]:
    """The rows' values, the same in all tensors."""
    assert torch.equal(conditioning["embedding"][:, 0, 0], -conditioning["pooled"][:, 0])
    return conditioning["embedding"][:, 0, 0].tolist()


def test_rows_are_taken_stacked_and_repeated_in_every_tensor() -> None:
    three = bundle(1, 2, 3)
    assert len(three) == 3
    assert values(three.take([2, 0, 2])) == [3, 1, 3] and values(three.take(slice(1, None))) == [2, 3]
    assert values(three.take(torch.tensor([1]))) == [2]
    assert values(Conditioning.stack([bundle(4), three])) == [4, 1, 2, 3]
    assert values(bundle(5).repeat(3)) == [5, 5, 5] and bundle(5).repeat(3)["pooled"].shape == (3, 4)


def test_mixtures_lie_between_the_two_in_every_tensor() -> None:
    assert values(Conditioning.lerp(bundle(1), bundle(3), torch.tensor([0, 0.25, 1.0]).double())) == [1, 1.5, 3]


def test_precision_and_device_are_those_asked_for() -> None:
    lower = bundle(1).to(torch.bfloat16).to(torch.device("cpu"))
    assert {tensor.dtype for tensor in lower.tensors.values()} == {torch.bfloat16}


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="same number of captions"):
        Conditioning({"embedding": torch.zeros(2, 3, 2), "pooled": torch.zeros(1, 4)})
    with pytest.raises(ValueError, match="one caption is repeated, found 2"):
        bundle(1, 2).repeat(3)
