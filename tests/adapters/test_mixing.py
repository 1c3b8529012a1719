from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft.utils import get_peft_model_state_dict

from pipeline.adapters.lora import adapter_weights, add_adapter, load_adapter, lora_config, save_adapter
from pipeline.adapters.mixing import mixed_adapters
from pipeline.adapters.pack import AdapterPack
from pipeline.base.stable_diffusion import StableDiffusion
from tests.adapters.training_settings import SETTINGS
from tests.reference import merge_into

Fresh = Callable[[], StableDiffusion]


def with_two_adapters(base: StableDiffusion) -> dict[str, dict[str, torch.Tensor]]:
    """Two adapters of random, not zero, factors; their tensors by adapter and name."""
    for number, name in enumerate(("first", "second")):
        add_adapter(base.unet, name, rank=2, alpha=3.0, seed=number)
        generator = torch.Generator().manual_seed(number)
        for weight in adapter_weights(base.unet, name).values():
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    return {
        name: {k: v.clone() for k, v in get_peft_model_state_dict(base.unet, adapter_name=name).items()}
        for name in ("first", "second")
    }


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return (
        torch.randn(3, 4, 8, 8, generator=generator),
        torch.tensor([5, 500, 900]),
        torch.randn(3, 64, 16, generator=generator),
    )


@torch.no_grad()
def test_each_sample_sees_its_own_product_of_the_factors(fresh_tiny: Fresh) -> None:
    base = fresh_tiny()
    state = with_two_adapters(base)
    latents, timesteps, captions = inputs()
    weights = {"first": torch.tensor([1.0, 0.7, 0.0]), "second": torch.tensor([0.0, 0.3, 1.0])}
    with mixed_adapters(base.unet, weights):
        mixed = base.predict(latents, timesteps, captions)
    for index in range(3):
        plain = fresh_tiny()
        merge_into(plain.unet, state, 3.0 / 2, {name: float(w[index]) for name, w in weights.items()})
        alone = plain.predict(latents[index : index + 1], timesteps[index : index + 1], captions[index : index + 1])
        assert torch.allclose(mixed[index], alone[0], atol=1e-5), index


@torch.no_grad()
def test_adapters_that_are_not_named_contribute_nothing(fresh_tiny: Fresh) -> None:
    base, plain = fresh_tiny(), fresh_tiny()
    with_two_adapters(base)
    with mixed_adapters(base.unet, {}):
        assert torch.equal(base.predict(*inputs()), plain.predict(*inputs()))


@torch.no_grad()
def test_the_unet_is_as_before_afterwards(fresh_tiny: Fresh) -> None:
    base = fresh_tiny()
    with_two_adapters(base)
    before = base.predict(*inputs())
    with mixed_adapters(base.unet, {"first": torch.tensor([9.0, 9.0, 9.0])}):
        assert not torch.allclose(base.predict(*inputs()), before)
    with pytest.raises(RuntimeError, match="on purpose"), mixed_adapters(base.unet, {"first": torch.zeros(3)}):
        raise RuntimeError("on purpose")
    assert torch.equal(base.predict(*inputs()), before)


def test_weights_for_a_unet_without_adapters_are_refused(fresh_tiny: Fresh) -> None:
    with pytest.raises(ValueError, match="no adapters"), mixed_adapters(fresh_tiny().unet, {"first": torch.ones(1)}):
        pass


@torch.no_grad()
@pytest.mark.parametrize("stabilised", [False, True])
def test_full_weight_is_the_adapter_as_it_was_saved(fresh_tiny: Fresh, tmp_path: Path, stabilised: bool) -> None:
    settings = SETTINGS.model_copy(update={"rank": 4, "alpha": 3.0, "rank_stabilised": stabilised})
    base, trained = fresh_tiny(), fresh_tiny()
    pack = AdapterPack(trained.unet, [1], settings)
    pack.up.copy_(0.3 * torch.randn(pack.up.shape, generator=torch.Generator().manual_seed(0)))
    save_adapter(
        tmp_path / "a", pack.tensors(0), lora_config(settings), {"base": {"source": "x", "digest": base.digest}}
    )
    load_adapter(base.unet, tmp_path / "a", "a", base.digest)
    with pack.attached():
        expected = trained.predict(*inputs())
    with mixed_adapters(base.unet, {"a": torch.ones(3)}):
        assert torch.allclose(base.predict(*inputs()), expected, atol=1e-5)
