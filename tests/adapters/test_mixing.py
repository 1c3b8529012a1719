from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.adapters.lora import lora_config, read_adapter, save_adapter
from pipeline.adapters.mixing import Adapter, mixed_adapters, mixing_weights
from pipeline.base.protocol import Base
from pipeline.training.pack import AdapterPack
from tests.reference import merged, random_adapters
from tests.tiny import caption_of, open_tiny
from tests.training.settings import SETTINGS


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return (
        torch.randn(3, 4, 8, 8, generator=generator),
        torch.tensor([5, 500, 900]),
        torch.randn(3, 64, 16, generator=generator),
    )


def predicted(base: Base) -> torch.Tensor:
    latents, timesteps, captions = inputs()
    return base.predict(latents, timesteps, caption_of(captions))


def test_weights_stand_by_sample_and_by_adapter() -> None:
    one, two = Adapter({}, 1.0), Adapter({}, 2.0)
    adapters, weights = mixing_weights([[(two, 0.5)], [], [(one, 1.0), (two, 0.25), (one, 2.0)]])
    assert adapters == [two, one] and weights.tolist() == [[0.5, 0, 0.25], [0, 0, 3.0]]
    nothing, weights = mixing_weights([[], []])
    assert nothing == [] and weights.shape == (0, 2)


@torch.no_grad()
def test_each_sample_sees_its_own_product_of_the_factors(tiny: Base) -> None:
    adapters = random_adapters(tiny.denoiser, 2)
    latents, timesteps, captions = inputs()
    weights = torch.tensor([[1.0, 0.7, 0.0], [0.0, 0.3, 1.0]])
    with mixed_adapters(tiny.denoiser, adapters, weights):
        mixed = tiny.predict(latents, timesteps, caption_of(captions))
    for index in range(3):
        plain = merged(tiny.denoiser, list(zip(adapters, weights[:, index].tolist(), strict=True)))
        alone = plain(latents[index : index + 1], timesteps[index : index + 1], captions[index : index + 1]).sample
        assert torch.allclose(mixed[index], alone[0], atol=1e-5), index


@torch.no_grad()
def test_adapters_may_have_factors_for_different_layers(tiny: Base) -> None:
    one, two = random_adapters(tiny.denoiser, 2)
    names = list(one.factors)
    one = Adapter({name: one.factors[name] for name in names[::2]}, one.scale)
    weights = torch.tensor([[0.5] * 3, [2.0] * 3])
    with mixed_adapters(tiny.denoiser, [one, two], weights):
        mixed = predicted(tiny)
    assert torch.allclose(mixed, merged(tiny.denoiser, [(one, 0.5), (two, 2.0)])(*inputs()).sample, atol=1e-5)


@torch.no_grad()
def test_the_denoiser_is_as_before_afterwards_and_without_adapters(tiny: Base) -> None:
    before = predicted(tiny)
    adapters = random_adapters(tiny.denoiser, 1)
    with mixed_adapters(tiny.denoiser, adapters, torch.full((1, 3), 9.0)):
        assert not torch.allclose(predicted(tiny), before)
    with pytest.raises(RuntimeError, match="on purpose"), mixed_adapters(tiny.denoiser, adapters, torch.ones(1, 3)):
        raise RuntimeError("on purpose")
    with mixed_adapters(tiny.denoiser, [], torch.zeros(0, 3)):
        assert torch.equal(predicted(tiny), before)


class Casts(TorchDispatchMode):
    """Counts changes of a tensor's type."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_in_a_lower_precision_factors_are_cast_once_and_not_in_every_call(tiny_folders: dict[str, Path]) -> None:
    base = open_tiny(tiny_folders["epsilon"], "bfloat16")
    adapters = random_adapters(base.denoiser, 1)
    layers = len(adapters[0].factors)
    with Casts() as plain:
        predicted(base)
    with mixed_adapters(base.denoiser, adapters, torch.ones(1, 3)), Casts() as mixed:
        predicted(base)
    # What is weighted, once a layer: the weights are float32. Not the factors.
    assert layers and mixed.count - plain.count <= layers


def test_factors_for_a_layer_that_is_not_there_or_not_linear_are_refused(tiny: Base) -> None:
    pair = torch.zeros(2, 16), torch.zeros(16, 2)
    for name in ("conv_in", "nowhere.at_all"):
        adapter = Adapter({name: pair}, 1.0)
        with pytest.raises(ValueError, match=name), mixed_adapters(tiny.denoiser, [adapter], torch.ones(1, 1)):
            pass
    assert not [module for module in tiny.denoiser.modules() if module._forward_hooks]
    assert isinstance(tiny.denoiser, nn.Module)


@torch.no_grad()
@pytest.mark.parametrize("stabilised", [False, True])
def test_full_weight_is_the_adapter_as_it_was_saved(
    tiny_folders: dict[str, Path], tmp_path: Path, stabilised: bool
) -> None:
    settings = SETTINGS.model_copy(update={"rank": 4, "alpha": 3.0, "rank_stabilised": stabilised})
    base = open_tiny(tiny_folders["epsilon"])
    pack = AdapterPack(base, [1], settings)
    pack.up.copy_(0.3 * torch.randn(pack.up.shape, generator=torch.Generator().manual_seed(0)))
    notes = {"base": {"source": "x", "digest": base.digest}}
    save_adapter(tmp_path / "a", pack.tensors(0), lora_config(settings), notes, base.adapter_prefix)
    with pack.attached():
        expected = predicted(base)
    adapter = read_adapter(tmp_path / "a", base.digest, base.device)
    with mixed_adapters(base.denoiser, [adapter], torch.ones(1, 3)):
        assert torch.allclose(predicted(base), expected, atol=1e-5)
