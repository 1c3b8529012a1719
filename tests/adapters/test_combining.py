import pytest
import torch

from pipeline.adapters.combining import combine, fuse
from pipeline.adapters.mixing import Adapter, mixed_adapters
from pipeline.base.protocol import Base
from tests.adapters.test_mixing import inputs, predicted
from tests.reference import merged, random_adapters


def product(adapter: Adapter, name: str) -> torch.Tensor:
    down, up = (factor.double() for factor in adapter.factors[name])
    return adapter.scale * up @ down


def random_adapter(rank: int, seed: int, names: tuple[str, ...] = ("a", "b")) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    pairs = {n: (torch.randn(rank, 7, generator=generator), torch.randn(5, rank, generator=generator)) for n in names}
    return Adapter(pairs, 0.5 + seed)


def test_without_a_rank_the_sum_is_exact_and_ranks_add() -> None:
    one, two = random_adapter(2, 0), random_adapter(1, 1, names=("b", "c"))
    mixed = combine([(one, 0.7), (two, -1.5)])
    assert mixed.rank == 3 and mixed.kept == 1.0
    expected = {
        "a": 0.7 * product(one, "a"),
        "b": 0.7 * product(one, "b") - 1.5 * product(two, "b"),
        "c": -1.5 * product(two, "c"),
    }
    assert mixed.factors.keys() == expected.keys()
    for name, (down, up) in mixed.factors.items():
        assert down.shape == (3, 7) and up.shape == (5, 3)
        assert torch.allclose(up.double() @ down.double(), expected[name], atol=1e-6)


def test_of_a_rank_it_is_the_nearest_and_says_how_much_is_in_it() -> None:
    one, two = random_adapter(2, 0), random_adapter(2, 1)
    mixed = combine([(one, 1.0), (two, 0.5)], rank=2)
    kept = total = 0.0
    for name, (down, up) in mixed.factors.items():
        whole = product(one, name) + 0.5 * product(two, name)
        left, values, right = torch.linalg.svd(whole, full_matrices=False)
        nearest = left[:, :2] * values[:2] @ right[:2]
        assert down.shape == (2, 7) and torch.allclose(up.double() @ down.double(), nearest, atol=1e-5)
        kept, total = kept + float(values[:2].square().sum()), total + float(values.square().sum())
    assert mixed.kept == pytest.approx(kept / total) and 0 < mixed.kept < 1
    full = combine([(one, 1.0), (two, 0.5)], rank=9)
    assert full.rank == 4 and full.kept == 1.0


def test_factors_merged_apart_would_be_another_thing() -> None:
    """Why peft's `linear` is not offered: (B + B')(A + A') is not B A + B' A'."""
    one, two = random_adapter(2, 0, ("a",)), random_adapter(2, 1, ("a",))
    down, up = combine([(one, 1.0), (two, 1.0)]).factors["a"]
    apart = (one.factors["a"][1] + two.factors["a"][1]) @ (one.factors["a"][0] + two.factors["a"][0])
    assert not torch.allclose(up @ down, apart, atol=0.1)


@torch.no_grad()
def test_fused_equals_mixed_and_merged(tiny: Base) -> None:
    one, two = random_adapters(tiny.denoiser, 2)
    weighted = [(one, 0.6), (two, -0.3)]
    with mixed_adapters(tiny.denoiser, [one, two], torch.tensor([[0.6] * 3, [-0.3] * 3])):
        mixed = predicted(tiny)
    together = Adapter(combine(weighted).factors, 1.0)
    with mixed_adapters(tiny.denoiser, [together], torch.ones(1, 3)):
        assert torch.allclose(predicted(tiny), mixed, atol=1e-5)
    expected = merged(tiny.denoiser, weighted)(*inputs()).sample
    plain = predicted(tiny)
    fuse(tiny, weighted)
    assert torch.allclose(predicted(tiny), mixed, atol=1e-5)
    assert torch.allclose(predicted(tiny), expected, atol=1e-5)
    assert not torch.allclose(predicted(tiny), plain, atol=1e-2)


def test_fusing_refuses_other_layers_and_what_is_not_finite(tiny: Base) -> None:
    name = next(iter(random_adapters(tiny.denoiser, 1)[0].factors))
    weight = tiny.denoiser.get_submodule(name).weight
    before = weight.clone()
    down, up = torch.ones(1, weight.shape[1]), torch.full((len(weight), 1), 3e38)
    with pytest.raises(ValueError, match="not finite in torch.float32"):
        fuse(tiny, [(Adapter({name: (down, up)}, 10.0), 1.0)])
    assert torch.equal(weight, before)
    with pytest.raises(ValueError, match="conv_in, which is no linear layer"):
        fuse(tiny, [(Adapter({"conv_in": (down, up)}, 1.0), 1.0)])
