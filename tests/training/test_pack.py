"""Adapters side by side against adapters alone, and against peft's own layers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.adapters.lora import lora_config, save_adapter
from pipeline.base.protocol import Base
from pipeline.errors import UserError
from pipeline.training.denoising import denoising_errors
from pipeline.training.draws import Batch
from pipeline.training.pack import AdapterPack, layers_of
from tests.peft_adapters import load_adapter
from tests.tiny import caption_of, in_double
from tests.training.settings import SETTINGS

Fresh = Callable[[], Base]


def randomised(pack: AdapterPack, seed: int = 0) -> AdapterPack:
    """Both factors random: from zero B nothing could be told apart."""
    generator = torch.Generator().manual_seed(seed)
    pack.up.copy_(0.3 * torch.randn(pack.up.shape, generator=generator))
    return pack


def batch(count: int, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(7)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    timesteps = torch.randint(1000, (count,), generator=generator)
    clean, added = noise(count, 4, 8, 8), noise(count, 4, 8, 8)
    return Batch(clean, added, timesteps, caption_of(noise(count, 64, 16)), ("",) * count, tuple(range(count)))


def test_each_part_of_a_batch_sees_its_own_adapter_as_peft_computes_it(fresh_tiny: Fresh, tmp_path: Path) -> None:
    base, inputs = fresh_tiny(), batch(6)
    pack = randomised(AdapterPack(base, [1, 2, 3], SETTINGS))
    with torch.no_grad(), pack.attached():
        together = base.predict(inputs.clean, inputs.times, inputs.conditioning)
    for place in range(3):
        part = inputs.take(torch.arange(2 * place, 2 * place + 2))
        path = tmp_path / f"{place}.safetensors"
        notes = {"base": {"source": "x", "digest": base.digest}}
        save_adapter(path, pack.tensors(place), lora_config(SETTINGS), notes, base.adapter_prefix)
        peft = fresh_tiny()
        load_adapter(peft.denoiser, path, "alone")
        with torch.no_grad():
            alone = peft.predict(part.clean, part.times, part.conditioning)
        assert torch.allclose(together[2 * place : 2 * place + 2], alone, atol=1e-5), place
    with torch.no_grad():
        assert not torch.allclose(together, base.predict(inputs.clean, inputs.times, inputs.conditioning), atol=0.01)


@pytest.mark.parametrize("stabilised", [False, True])
def test_the_scale_is_alpha_over_rank_or_its_root(fresh_tiny: Fresh, tmp_path: Path, stabilised: bool) -> None:
    """Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA"."""
    settings = SETTINGS.model_copy(update={"rank": 4, "alpha": 3.0, "rank_stabilised": stabilised})
    base, inputs = fresh_tiny(), batch(1)
    pack = randomised(AdapterPack(base, [1], settings))
    assert pack.scale == pytest.approx(3 / 2 if stabilised else 3 / 4)
    path = tmp_path / "a.safetensors"
    notes = {"base": {"source": "x", "digest": base.digest}}
    save_adapter(path, pack.tensors(0), lora_config(settings), notes, base.adapter_prefix)
    peft = fresh_tiny()
    load_adapter(peft.denoiser, path, "a")
    with torch.no_grad(), pack.attached():
        ours = base.predict(inputs.clean, inputs.times, inputs.conditioning)
        theirs = peft.predict(inputs.clean, inputs.times, inputs.conditioning)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_gradients_side_by_side_are_those_of_each_alone(fresh_tiny: Fresh) -> None:
    base, inputs = in_double(fresh_tiny()), batch(6, torch.float64)
    settings = SETTINGS.model_copy(update={"targets": "attention+feed-forward"})
    together = randomised(AdapterPack(base, [1, 2, 3], settings))
    with together.attached():
        denoising_errors(base, inputs).view(3, 2).mean(1).sum().backward()
    assert together.down.dtype == torch.float64
    for place in range(3):
        alone = AdapterPack(base, [place], settings)
        alone.down[0], alone.up[0] = together.down[place], together.up[place]
        own = inputs.take(torch.arange(2 * place, 2 * place + 2))
        with alone.attached():
            denoising_errors(base, own).mean().backward()
        assert alone.down_grad.abs().max() > 1e-4
        assert torch.allclose(alone.down_grad[0], together.down_grad[place], atol=1e-12, rtol=1e-10)
        assert torch.allclose(alone.up_grad[0], together.up_grad[place], atol=1e-12, rtol=1e-10)


def test_a_start_depends_on_its_seed_alone_and_changes_nothing(tiny: Base) -> None:
    inputs = batch(2)
    first, second = AdapterPack(tiny, [5, 6], SETTINGS), AdapterPack(tiny, [6], SETTINGS)
    assert torch.equal(first.down[1], second.down[0]) and not torch.equal(first.down[0], first.down[1])
    with torch.no_grad():
        plain = tiny.predict(inputs.clean, inputs.times, inputs.conditioning)
        with first.attached():
            assert torch.equal(tiny.predict(inputs.clean, inputs.times, inputs.conditioning), plain)
        first.up.fill_(1)
        assert torch.equal(tiny.predict(inputs.clean, inputs.times, inputs.conditioning), plain), "still attached"


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_a_starts_with_the_spread_of_its_name(tiny: Base, init: str) -> None:
    settings = SETTINGS.model_copy(update={"init": init, "rank": 8})
    pack = AdapterPack(tiny, range(64), settings)
    for layer in pack.layers:
        start = pack.down[:, layer.down]
        if init == "gaussian":
            assert float(start.std()) == pytest.approx(1 / 8, rel=0.05)
        else:
            bound = layer.module.in_features**-0.5
            assert float(start.abs().max()) <= bound
            assert float(start.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not pack.up.any()


def test_clipping_shortens_each_adapter_to_the_norm_by_itself(tiny: Base) -> None:
    pack = AdapterPack(tiny, [1, 2, 3], SETTINGS)
    generator = torch.Generator().manual_seed(0)
    for grads in (pack.down_grad, pack.up_grad):
        grads.copy_(torch.randn(grads.shape, generator=generator))
    pack.down_grad[1] *= 1e-6
    pack.up_grad[1] *= 1e-6
    before = [torch.cat([pack.down_grad[i], pack.up_grad[i]]).clone() for i in range(3)]
    norms = pack.clip(0.5)
    assert norms.tolist() == pytest.approx([float(grad.norm()) for grad in before], rel=1e-5)
    after = [torch.cat([pack.down_grad[i], pack.up_grad[i]]) for i in range(3)]
    assert [float(grad.norm()) for grad in after] == pytest.approx([0.5, float(before[1].norm()), 0.5], rel=1e-5)
    assert torch.allclose(after[0] * float(norms[0]) / 0.5, before[0], rtol=1e-4)


def test_layers_by_preset_and_by_name(tiny: Base) -> None:
    attention = {layer.name for layer in layers_of(tiny.denoiser, "attention", 2)}
    both = {layer.name for layer in layers_of(tiny.denoiser, "attention+feed-forward", 2)}
    keys = {layer.name for layer in layers_of(tiny.denoiser, ["to_k"], 2)}
    assert all(name.split(".")[-1] in {"to_q", "to_k", "to_v"} or name.endswith("to_out.0") for name in attention)
    assert {name.split("ff.")[1] for name in both - attention} == {"net.0.proj", "net.2"}
    assert keys == {name for name in attention if name.endswith("to_k")}
    every = {name for name, module in tiny.denoiser.named_modules() if isinstance(module, nn.Linear) and "attn" in name}
    assert attention == every


@pytest.mark.parametrize(("name", "found"), [("to_z", "no layer is called to_z"), ("conv1", "is a Conv2d")])
def test_names_that_fit_nothing_or_no_linear_layer_are_refused(tiny: Base, name: str, found: str) -> None:
    with pytest.raises(UserError, match=found):
        layers_of(tiny.denoiser, ["to_q", name], 2)
