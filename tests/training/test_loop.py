import gc
import weakref
from pathlib import Path

import pytest
import torch

from pipeline.base.conditioning import Conditioning
from pipeline.base.noise_path import NoisePath
from pipeline.base.protocol import Base
from pipeline.training import trainer
from pipeline.training.checkpoints import Checkpoints, TrainState
from pipeline.training.denoising import Denoising
from pipeline.training.draws import Batch
from pipeline.training.history import curves_of, ended, learned_little
from pipeline.training.loop import Callbacks
from pipeline.training.objective import Trained
from pipeline.training.optimizers import LossScales, RowOptimizer
from pipeline.training.pack import AdapterPack
from pipeline.training.recording import recompute_in_backward
from tests.tiny import in_double, open_tiny
from tests.training.jobs import Fresh, Tensors, jobs, trained, weights
from tests.training.settings import SETTINGS

OPTIONS = {
    "plain": {},
    "accumulation": {"accumulation": 2, "batch": 2, "schedule": "cosine", "warmup": 2},
    "all": {
        "min_snr_gamma": 5.0, "noise_offset": 0.1, "caption_dropout": 0.3, "flip": True, "b_rate": 4.0,
        "targets": "attention+feed-forward", "rank_stabilised": True, "init": "gaussian", "max_grad_norm": 0.05,
    },
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_adapters_side_by_side_are_those_trained_alone(fresh_tiny: Fresh, tmp_path: Path, options: str) -> None:
    """Promise 4, in float64 to 1e-10, with every option somewhere."""
    settings = SETTINGS.model_copy(update=OPTIONS[options])
    together = weights(trained(in_double(fresh_tiny()), tmp_path / "together", settings))
    alone = weights(trained(in_double(fresh_tiny()), tmp_path / "alone", settings, pack_size=1))
    two = weights(trained(in_double(fresh_tiny()), tmp_path / "two", settings, pack_size=2))
    for name, weight in together.items():
        assert weight.dtype == torch.float64
        assert torch.allclose(weight, alone[name], atol=1e-10, rtol=0), name
        assert torch.allclose(weight, two[name], atol=1e-10, rtol=0), name
    assert not torch.allclose(together["job 0"], together["job 1"], atol=1e-3)


def test_in_float32_packing_changes_rounding_only(fresh_tiny: Fresh, tmp_path: Path) -> None:
    """Rounding, but not to the bit; AdamW makes a whole step of a gradient that is nothing but rounding."""
    together = weights(trained(fresh_tiny(), tmp_path / "together"))
    alone = weights(trained(fresh_tiny(), tmp_path / "alone", pack_size=1))
    for name, weight in together.items():
        close = torch.isclose(weight, alone[name], atol=1e-5)
        assert float(close.double().mean()) > 0.99, name


def test_an_adapter_is_a_function_of_its_inputs_and_of_nothing_else(fresh_tiny: Fresh, tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = weights(trained(fresh_tiny(), tmp_path / "x"))
    torch.manual_seed(2)
    two = weights(trained(fresh_tiny(), tmp_path / "y", every=1))
    base = fresh_tiny()
    turned = weights(trained(base, tmp_path / "z", wanted=jobs(base)[::-1]))
    other = weights(trained(fresh_tiny(), tmp_path / "w", SETTINGS.model_copy(update={"seed": 1})))
    for name in one:
        assert torch.equal(one[name], two[name]) and torch.allclose(one[name], turned[name], atol=1e-5)
        assert not torch.allclose(one[name], other[name], atol=1e-3)


def test_out_of_memory_halves_the_pack_and_loses_no_step(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calm = weights(trained(in_double(fresh_tiny()), tmp_path / "calm"))
    calls = list[int]()

    class Tight(Denoising):
        def losses(self, given: Trained, inputs: Tensors, captions: Conditioning) -> torch.Tensor:
            calls.append(len(captions))
            if len(captions) > 2 * SETTINGS.batch and len(calls) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().losses(given, inputs, captions)

    halved = weights(trained(in_double(fresh_tiny()), tmp_path / "halved", every=100, objective=Tight()))
    assert all(torch.allclose(calm[name], halved[name], atol=1e-10) for name in calm)
    said = capsys.readouterr()
    assert "3 adapters at once do not fit into memory: continuing with 2" in said.out + said.err
    # Side by side: the first validation of two samples in two parts each, one step, and the one that did not fit.
    assert calls[:6] == [9, 6, 9, 6, 9, 9]
    # Then two and one: five steps and the last validation each.
    assert len(calls) == 6 + 2 * (5 + 4), "a step was done twice, or not at all"

    class Hopeless(Denoising):
        def losses(self, given: Trained, inputs: Tensors, captions: Conditioning) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        trained(fresh_tiny(), tmp_path / "never", objective=Hopeless())


@pytest.mark.parametrize("at", [0, 3])
def test_memory_that_runs_out_in_the_optimizer_loses_and_repeats_no_step(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Of three adapters the first has done the step, the second is in the midst of it, the third has not begun."""
    calm = trained(in_double(fresh_tiny()), tmp_path / "calm")
    plain, calls = torch.optim.AdamW.step, []

    def tight(self: torch.optim.AdamW) -> None:
        calls.append(self)
        plain(self)
        if len(calls) == 3 * at + 2:
            kind = torch.OutOfMemoryError if at else RuntimeError  # CUDA's, and that of Apple's MPS
            raise kind("MPS backend out of memory")  # the row has moved, or half of it

    monkeypatch.setattr(torch.optim.AdamW, "step", tight)
    reported: list[tuple[str, int]] = []
    callbacks = Callbacks(step=lambda name, step, values: reported.append((name, step)))
    tried = trained(in_double(fresh_tiny()), tmp_path / "tried", every=100, callbacks=callbacks)
    for name, state in calm.items():
        for key, tensor in state.tensors.items():
            assert torch.allclose(tensor, tried[name].tensors[key], atol=1e-10), (name, key)
    assert sorted(reported) == [(f"job {number}", step) for number in range(3) for step in range(6)]


def test_training_lowers_the_loss_at_fixed_noise_and_leaves_the_base_alone(tiny: Base, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"steps": 60, "learning_rate": 3e-2, "validate_every": 20})
    frozen = {key: weight.clone() for key, weight in tiny.denoiser.state_dict().items()}
    reported: list[tuple[str, int, list[str]]] = []
    callbacks = Callbacks(validation=lambda job, step, losses: reported.append((job.name, step, list(losses))))
    states = trained(tiny, tmp_path, settings, every=1000, callbacks=callbacks)
    for state in states.values():
        curves = curves_of(state, settings)
        assert list(curves.validation) == [0, 20, 40, 60] and curves.validation[0].shape == (2,)
        assert curves.validation[60].mean() < 0.97 * curves.validation[0].mean()
        assert learned_little(curves) is None and curves.ended == "all 60 steps"
        assert curves.loss.shape == (60,) and bool((curves.grad_norm > 0).all())
    assert reported[0] == ("job 0", 0, ["0.png", "1.png"]) and len(reported) == 12
    now = tiny.denoiser.state_dict()
    assert now.keys() == frozen.keys() and all(torch.equal(now[key], weight) for key, weight in frozen.items())


def test_a_training_that_learned_nothing_is_told(tiny: Base, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"learning_rate": 1e-9})
    states = trained(tiny, tmp_path, settings)
    assert "hardly anything was learned" in str(learned_little(curves_of(states["job 0"], settings)))


def test_an_adapter_stops_when_its_loss_has_stopped_falling_and_the_others_go_on(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(update={"steps": 12, "validate_every": 2, "patience": 2})
    calm = trained(in_double(fresh_tiny()), tmp_path / "calm", settings.model_copy(update={"patience": None}))
    plain = trainer.PackTrainer.validate

    def rising(self: trainer.PackTrainer) -> torch.Tensor:
        losses = plain(self)
        for row, own in enumerate(self.examples):
            falls = own[0].name != "10.png"  # of job 1
            self.history.validations[row][self.step] = torch.tensor([1.0 - self.step / 100 if falls else 1.0]).double()
        return losses

    monkeypatch.setattr(trainer.PackTrainer, "validate", rising)
    states = trained(in_double(fresh_tiny()), tmp_path / "stopped", settings)
    assert {name: state.step for name, state in states.items()} == {"job 0": 12, "job 1": 4, "job 2": 12}
    assert ended(states["job 1"], settings) == "the loss at fixed noise had stopped falling by step 4"
    for name in ("job 0", "job 2"):
        assert torch.allclose(weights(calm)[name], weights(states)[name], atol=1e-10)
    reached = SETTINGS.model_copy(update={"steps": 12, "validate_every": 2, "target_loss": 0.95})
    states = trained(in_double(fresh_tiny()), tmp_path / "reached", reached)
    assert {name: state.step for name, state in states.items()} == {"job 0": 6, "job 1": 12, "job 2": 6}
    assert "reached 0.95 at step 6" in str(ended(states["job 0"], reached))


def test_adapter_weights_are_float32_over_a_bfloat16_base(tiny_folders: dict[str, Path], tmp_path: Path) -> None:

    base = open_tiny(tiny_folders["epsilon"], dtype="bfloat16")
    states = trained(base, tmp_path)
    assert base.denoiser.conv_in.weight.dtype == torch.bfloat16
    assert {tensor.dtype for state in states.values() for tensor in weights({"": state}).values()} == {torch.float32}
    assert all(state.tensors["weight/up"].any() for state in states.values()), "nothing was learned"


def test_a_loss_that_is_not_finite_stops_with_the_step_the_adapter_and_the_pictures(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Broken(Denoising):
        def inputs(self, path: NoisePath, batch: Batch, weighted: bool = True) -> Tensors:
            found = super().inputs(path, batch, weighted)
            calls.extend([1] * weighted)
            rows = torch.arange(len(batch)) // SETTINGS.batch
            broken = {"weights": torch.where(rows == 1, float("nan"), 1.0)}
            return {**found, **broken} if weighted and len(calls) == 4 else found

    with pytest.raises(FloatingPointError, match=r"job 1: loss nan .* at step 3 \(10.png, 11.png\); lower train"):
        trained(fresh_tiny(), tmp_path, objective=Broken())
    kept = Checkpoints(tmp_path).load("identity-1")
    assert kept is not None and kept.step == 2 and bool(kept.tensors["weight/up"].isfinite().all())


def test_lora_plus_lets_b_learn_faster(tiny: Base) -> None:
    """AdamW's first step moves every weight by its rate."""
    settings = SETTINGS.model_copy(update={"b_rate": 16.0, "weight_decay": 0.0})
    pack = AdapterPack(tiny, [0], settings)
    before = pack.down.clone()
    optimizer = RowOptimizer(pack, 0, settings)
    pack.down_grad.fill_(0.5)
    pack.up_grad.fill_(-0.5)
    optimizer.set_rate(1e-3)
    optimizer.step()
    assert torch.allclose(before - pack.down, torch.tensor(1e-3), rtol=1e-3)
    assert torch.allclose(pack.up, torch.tensor(16e-3), rtol=1e-3)


def test_accumulated_passes_are_one_larger_batch(fresh_tiny: Fresh, tmp_path: Path) -> None:
    whole = trained(in_double(fresh_tiny()), tmp_path / "whole", SETTINGS.model_copy(update={"batch": 4}))
    passes = trained(
        in_double(fresh_tiny()), tmp_path / "passes", SETTINGS.model_copy(update={"batch": 2, "accumulation": 2})
    )
    for name, state in whole.items():
        assert torch.allclose(weights(whole)[name], weights(passes)[name], atol=1e-10)
        assert torch.allclose(state.tensors["curve/loss"], passes[name].tensors["curve/loss"], atol=1e-6)


def test_gradient_checkpointing_changes_no_number(fresh_tiny: Fresh, tmp_path: Path) -> None:
    plain, frugal = in_double(fresh_tiny()), in_double(fresh_tiny())
    recompute_in_backward(frugal.denoiser)
    one, two = weights(trained(plain, tmp_path / "plain")), weights(trained(frugal, tmp_path / "frugal"))
    assert all(torch.allclose(one[name], two[name], atol=1e-10) for name in one)


def test_loss_scales_follow_each_adapter_by_itself(tiny: Base) -> None:
    pack = AdapterPack(tiny, [1, 2], SETTINGS)
    scales = LossScales(2, True, torch.device("cpu"))
    assert (torch.tensor([1.0, 2.0]) * scales.begin()).tolist() == [65536, 131072]
    pack.down_grad.fill_(65536.0)
    pack.up_grad[1, 3] = float("inf")
    assert scales.unscale(pack) == [True, False]
    assert pack.down_grad[0, 0] == 1 and not pack.down_grad[1].any() and not pack.up_grad[1].any()
    assert scales.scales.tolist() == [65536, 32768]
    scales.good[0] = LossScales.GROW_AFTER - 1
    pack.zero_grad()
    scales.unscale(pack)
    assert scales.scales.tolist() == [131072, 32768] and scales.good.tolist() == [0, 1]


def test_another_objective_is_a_function_of_what_is_trained_and_a_batch(fresh_tiny: Fresh, tmp_path: Path) -> None:
    """With twice the loss and no clipping AdamW takes the same steps, with none it takes none."""
    settings = SETTINGS.model_copy(update={"max_grad_norm": 1e6, "weight_decay": 0.0})

    def trained_for(factor: float) -> dict[str, TrainState]:
        folder = tmp_path / str(factor)

        class Scaled(Denoising):
            def losses(self, given: Trained, inputs: Tensors, captions: Conditioning) -> torch.Tensor:
                return factor * super().losses(given, inputs, captions)

        return trained(in_double(fresh_tiny()), folder, settings, objective=Scaled())

    plain, doubled, still = weights(trained_for(1.0)), weights(trained_for(2.0)), trained_for(0.0)
    for name in plain:
        # But for gradients that are nothing beside AdamW's epsilon.
        assert float(torch.isclose(doubled[name], plain[name], atol=1e-3).double().mean()) > 0.99
        assert not still[name].tensors["weight/up"].any()


def test_previews_leave_no_trace(fresh_tiny: Fresh, tmp_path: Path) -> None:
    from pipeline.previews import preview_sheet

    plain = trained(fresh_tiny(), tmp_path / "plain")
    base, sheets = fresh_tiny(), []
    callbacks = Callbacks(preview=lambda jobs, step: sheets.append(preview_sheet(base, jobs)), preview_every=2)
    shown = trained(base, tmp_path / "shown", callbacks=callbacks)
    assert [sheet.shape for sheet in sheets] == [(3 * 16, 2 * 16, 3)] * 3
    assert not (sheets[0] == sheets[2]).all()
    for name, state in plain.items():
        assert all(torch.equal(tensor, shown[name].tensors[key]) for key, tensor in state.tensors.items())


def test_only_the_pack_in_training_is_in_memory(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1,000 adapters the finished ones lie on disk, and those to come are not read yet."""
    plain, known = trainer.PackTrainer.state, list[weakref.ref[TrainState]]()
    alive = list[int]()

    def state(self: trainer.PackTrainer, row: int) -> TrainState:
        alive.append(sum(ref() is not None for ref in known))
        found = plain(self, row)
        known.append(weakref.ref(found))
        return found

    monkeypatch.setattr(trainer.PackTrainer, "state", state)
    states = trained(fresh_tiny(), tmp_path, pack_size=1, every=100)
    gc.collect()
    assert len(known) >= 3 and max(alive) <= 1
    assert sum(ref() is not None for ref in known) <= 1
    assert "job 1" in states and states["job 1"].tensors["weight/down"].abs().sum() > 0
