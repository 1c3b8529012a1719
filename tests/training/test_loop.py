from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from pipeline.base.stable_diffusion import Posterior, StableDiffusion
from pipeline.params import TrainSection
from pipeline.training import loop as training
from pipeline.training.checkpoints import Checkpoints, TrainState
from pipeline.training.draws import Sample
from pipeline.training.loop import Job, Watch, curves_of, ended, hardly_moved, train_adapters
from pipeline.training.optimizers import LossScales, RowOptimizer
from pipeline.training.pack import AdapterPack
from tests.training.settings import SETTINGS

Fresh = Callable[[], StableDiffusion]


def samples(base: StableDiffusion, first: int = 0, count: int = 2) -> list[Sample]:
    made = []
    for number in range(first, first + count):
        generator = torch.Generator().manual_seed(number)
        mean = torch.randn(1, 4, 8, 8, generator=generator).to(base.dtype)
        mirrored = Posterior(mean.flip(-1), torch.full_like(mean, 0.1))
        conditioning = base.condition(["a red hill"])
        digest = f"digest {number}"
        posterior = Posterior(mean, torch.full_like(mean, 0.1))
        made.append(Sample(f"{number}.png", digest, posterior, conditioning, "a red hill", mirrored))
    return made


def jobs(base: StableDiffusion, count: int = 3) -> list[Job]:
    return [Job(f"job {number}", f"identity-{number}", samples(base, 10 * number)) for number in range(count)]


def trained(
    base: StableDiffusion,
    folder: Path,
    settings: TrainSection = SETTINGS,
    wanted: list[Job] | None = None,
    **keywords: object,
) -> dict[str, TrainState]:
    given = {"pack_size": None, "every": 2, **keywords}
    return train_adapters(
        base, wanted or jobs(base), settings, Checkpoints(folder), empty=base.condition([""]), **given
    )


def weights(states: Mapping[str, TrainState]) -> dict[str, torch.Tensor]:
    return {
        name: torch.cat([state.tensors["weight/down"], state.tensors["weight/up"]]) for name, state in states.items()
    }


def double(base: StableDiffusion) -> StableDiffusion:
    base.unet.double()
    return type(base)(**{**vars(base), "dtype": torch.float64})


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
    together = weights(trained(double(fresh_tiny()), tmp_path / "together", settings))
    alone = weights(trained(double(fresh_tiny()), tmp_path / "alone", settings, pack_size=1))
    two = weights(trained(double(fresh_tiny()), tmp_path / "two", settings, pack_size=2))
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


class Killed(BaseException):
    """Stands for a SIGKILL: nothing may run after it."""


def kill_at(step: int) -> Callable[..., object]:
    plain = training.draw_batch

    def draw(samples: object, settings: object, length: int, empty: object, at: int, places: range) -> object:
        if at == step:
            raise Killed
        return plain(samples, settings, length, empty, at, places)

    return draw


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_killed_training_goes_on_exactly_where_it_was(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    settings = SETTINGS.model_copy(update={"validate_every": 3, "schedule": "linear"})
    calm = trained(fresh_tiny(), tmp_path / "calm", settings)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "draw_batch", kill_at(step))
        trained(fresh_tiny(), tmp_path / "killed", settings)
    resumed = trained(fresh_tiny(), tmp_path / "killed", settings)
    for name, state in calm.items():
        assert resumed[name].tensors.keys() == state.tensors.keys()
        for key, tensor in state.tensors.items():
            assert torch.equal(tensor, resumed[name].tensors[key]), key


def test_a_finished_training_is_taken_from_its_checkpoint(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = weights(trained(fresh_tiny(), tmp_path))
    monkeypatch.setattr(training, "draw_batch", kill_at(0))
    monkeypatch.setattr(training, "train_pack", None)
    again = weights(trained(fresh_tiny(), tmp_path))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_adapters_at_different_steps_catch_up_and_go_on_together(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = weights(trained(double(fresh_tiny()), tmp_path / "calm"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "draw_batch", kill_at(5))
        trained(double(fresh_tiny()), tmp_path / "killed")
    for path in (tmp_path / "killed/identity-1").iterdir():
        path.unlink()
    packs, plain = [], training.train_pack

    def spy(base: object, group: list[Job], states: Mapping[str, TrainState], *rest: object) -> None:
        packs.append((len(group), states[group[0].name].step))
        plain(base, group, states, *rest)

    monkeypatch.setattr(training, "train_pack", spy)
    resumed = weights(trained(double(fresh_tiny()), tmp_path / "killed"))
    assert packs == [(1, 0), (3, 4)]
    assert all(torch.allclose(calm[name], resumed[name], atol=1e-10) for name in calm)


@pytest.mark.parametrize(("step", "gone_back"), [(5, 2), (3, 0)])
def test_a_pack_killed_while_it_was_saved_goes_back_to_where_all_of_it_was(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, gone_back: int
) -> None:
    calm = trained(fresh_tiny(), tmp_path / "calm")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "draw_batch", kill_at(step))
        trained(fresh_tiny(), tmp_path / "killed")
    last = tmp_path / "killed/identity-1/checkpoint.safetensors"
    before = last.with_name("checkpoint-before.safetensors")
    if before.exists():
        before.replace(last)  # as if killed before this one's turn
    else:
        last.unlink()
    packs, plain = [], training.train_pack

    def spy(base: object, group: list[Job], states: Mapping[str, TrainState], *rest: object) -> None:
        packs.append((len(group), {states[job.name].step for job in group}))
        plain(base, group, states, *rest)

    monkeypatch.setattr(training, "train_pack", spy)
    resumed = trained(fresh_tiny(), tmp_path / "killed")
    assert packs == [(3, {gone_back})]
    for name, state in calm.items():
        assert all(torch.equal(tensor, resumed[name].tensors[key]) for key, tensor in state.tensors.items())


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    fresh_tiny: Fresh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = weights(trained(fresh_tiny(), tmp_path))
    damaged = tmp_path / "identity-1/checkpoint.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    states = Checkpoints(tmp_path).load("identity-1")
    assert states is not None and states.step == 4
    said = capsys.readouterr()
    assert str(damaged) in said.out + said.err
    again = weights(trained(fresh_tiny(), tmp_path))
    assert all(torch.allclose(first[name], again[name], atol=1e-5) for name in first)


def test_out_of_memory_halves_the_pack_and_loses_no_step(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calm = weights(trained(double(fresh_tiny()), tmp_path / "calm"))
    plain, calls = training.denoising_losses, []

    def tight(base: object, batch: object, *gamma: object) -> object:
        calls.append(len(batch.clean))
        if len(batch.clean) > 2 * SETTINGS.batch and len(calls) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(base, batch, *gamma)

    monkeypatch.setattr(training, "denoising_losses", tight)
    halved = weights(trained(double(fresh_tiny()), tmp_path / "halved", every=100))
    assert all(torch.allclose(calm[name], halved[name], atol=1e-10) for name in calm)
    said = capsys.readouterr()
    assert "3 adapters at once do not fit into memory: on with 2" in said.out + said.err
    # Side by side: the first validation of two samples in two parts each, one step, and the one that did not fit.
    assert calls[:6] == [9, 6, 9, 6, 9, 9]
    # Then two and one: five steps and the last validation each.
    assert len(calls) == 6 + 2 * (5 + 4), "a step was done twice, or not at all"

    def hopeless(base: object, batch: object, *gamma: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "denoising_losses", hopeless)
    with pytest.raises(torch.OutOfMemoryError):
        trained(fresh_tiny(), tmp_path / "never")


def test_training_lowers_the_loss_at_fixed_noise_and_leaves_the_base_alone(
    tiny: StableDiffusion, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"steps": 60, "learning_rate": 3e-2, "validate_every": 20})
    frozen = {key: weight.clone() for key, weight in tiny.unet.state_dict().items()}
    told: list[tuple[str, int, list[str]]] = []
    watch = Watch(validated=lambda job, step, losses: told.append((job.name, step, list(losses))))
    states = trained(tiny, tmp_path, settings, every=1000, watch=watch)
    for state in states.values():
        curves = curves_of(state, settings)
        assert list(curves.validation) == [0, 20, 40, 60] and curves.validation[0].shape == (2,)
        assert curves.validation[60].mean() < 0.97 * curves.validation[0].mean()
        assert hardly_moved(curves) is None and curves.ended == "all 60 steps"
        assert curves.loss.shape == (60,) and bool((curves.grad_norm > 0).all())
    assert told[0] == ("job 0", 0, ["0.png", "1.png"]) and len(told) == 12
    now = tiny.unet.state_dict()
    assert now.keys() == frozen.keys() and all(torch.equal(now[key], weight) for key, weight in frozen.items())


def test_a_training_that_learned_nothing_is_told(tiny: StableDiffusion, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"learning_rate": 1e-9})
    states = trained(tiny, tmp_path, settings)
    assert "hardly anything was learned" in str(hardly_moved(curves_of(states["job 0"], settings)))


def test_an_adapter_stops_when_its_loss_has_stopped_falling_and_the_others_go_on(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(update={"steps": 12, "validate_every": 2, "patience": 2})
    calm = trained(double(fresh_tiny()), tmp_path / "calm", settings.model_copy(update={"patience": None}))
    plain = training.validate

    def rising(base: object, group: list[Job], seen: training.Seen, step: int, *rest: object) -> None:
        plain(base, group, seen, step, *rest)
        for place, job in enumerate(group):
            falls = job.name != "job 1"
            seen.validations[place][step] = torch.tensor([1.0 - step / 100 if falls else 1.0]).double()

    monkeypatch.setattr(training, "validate", rising)
    states = trained(double(fresh_tiny()), tmp_path / "stopped", settings)
    assert {name: state.step for name, state in states.items()} == {"job 0": 12, "job 1": 4, "job 2": 12}
    assert ended(states["job 1"], settings) == "the validation loss had stopped falling by step 4"
    for name in ("job 0", "job 2"):
        assert torch.allclose(weights(calm)[name], weights(states)[name], atol=1e-10)
    reached = SETTINGS.model_copy(update={"steps": 12, "validate_every": 2, "target_loss": 0.95})
    states = trained(double(fresh_tiny()), tmp_path / "reached", reached)
    assert {name: state.step for name, state in states.items()} == {"job 0": 6, "job 1": 12, "job 2": 6}
    assert "reached 0.95 at step 6" in str(ended(states["job 0"], reached))


def test_adapter_weights_are_float32_over_a_bfloat16_base(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    from tests.tiny import open_tiny

    base = open_tiny(tiny_folders["epsilon"], dtype="bfloat16")
    states = trained(base, tmp_path)
    assert base.unet.conv_in.weight.dtype == torch.bfloat16
    assert {tensor.dtype for state in states.values() for tensor in weights({"": state}).values()} == {torch.float32}
    assert all(state.tensors["weight/up"].any() for state in states.values()), "nothing was learned"


def test_a_loss_that_is_not_finite_stops_with_the_step_the_adapter_and_the_pictures(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = training.denoising_losses, []

    def broken(base: object, batch: object, *gamma: object) -> torch.Tensor:
        losses = plain(base, batch, *gamma)
        if gamma:  # validation has none
            calls.append(1)
            if len(calls) == 4:
                losses = losses * torch.where(torch.arange(len(losses)) // SETTINGS.batch == 1, float("nan"), 1.0)
        return losses

    monkeypatch.setattr(training, "denoising_losses", broken)
    with pytest.raises(FloatingPointError, match=r"job 1: loss nan .* at step 3 \(10.png, 11.png\); lower train"):
        trained(fresh_tiny(), tmp_path)
    kept = Checkpoints(tmp_path).load("identity-1")
    assert kept is not None and kept.step == 2 and bool(kept.tensors["weight/up"].isfinite().all())


def test_lora_plus_lets_b_learn_faster(tiny: StableDiffusion) -> None:
    """AdamW's first step moves every weight by its rate."""
    settings = SETTINGS.model_copy(update={"b_rate": 16.0, "weight_decay": 0.0})
    pack = AdapterPack(tiny.unet, [0], settings)
    before = pack.down.clone()
    optimizer = RowOptimizer(pack, 0, settings)
    pack.down_grad.fill_(0.5)
    pack.up_grad.fill_(-0.5)
    optimizer.set_rate(1e-3)
    optimizer.step()
    assert torch.allclose(before - pack.down, torch.tensor(1e-3), rtol=1e-3)
    assert torch.allclose(pack.up, torch.tensor(16e-3), rtol=1e-3)


def test_accumulated_passes_are_one_larger_batch(fresh_tiny: Fresh, tmp_path: Path) -> None:
    whole = trained(double(fresh_tiny()), tmp_path / "whole", SETTINGS.model_copy(update={"batch": 4}))
    passes = trained(
        double(fresh_tiny()), tmp_path / "passes", SETTINGS.model_copy(update={"batch": 2, "accumulation": 2})
    )
    for name, state in whole.items():
        assert torch.allclose(weights(whole)[name], weights(passes)[name], atol=1e-10)
        assert torch.allclose(state.tensors["curve/loss"], passes[name].tensors["curve/loss"], atol=1e-6)


def test_gradient_checkpointing_changes_no_number(fresh_tiny: Fresh, tmp_path: Path) -> None:
    plain, frugal = double(fresh_tiny()), double(fresh_tiny())
    frugal.unet.enable_gradient_checkpointing()
    one, two = weights(trained(plain, tmp_path / "plain")), weights(trained(frugal, tmp_path / "frugal"))
    assert all(torch.allclose(one[name], two[name], atol=1e-10) for name in one)


def test_loss_scales_follow_each_adapter_by_itself(tiny: StableDiffusion) -> None:
    pack = AdapterPack(tiny.unet, [1, 2], SETTINGS)
    scales = LossScales(2, True, torch.device("cpu"))
    assert scales.scaled(torch.tensor([1.0, 2.0])).tolist() == [65536, 131072]
    pack.down_grad.fill_(65536.0)
    pack.up_grad[1, 3] = float("inf")
    assert scales.unscale(pack) == [True, False]
    assert pack.down_grad[0, 0] == 1 and not pack.down_grad[1].any() and not pack.up_grad[1].any()
    assert scales.scales.tolist() == [65536, 32768]
    scales.good[0] = LossScales.GROW_AFTER - 1
    pack.zero_grad()
    scales.unscale(pack)
    assert scales.scales.tolist() == [131072, 32768] and scales.good.tolist() == [0, 1]
