from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from pipeline.adapters import training
from pipeline.adapters.lora import adapter_weights
from pipeline.adapters.training import Sample, batch_loss, draw_batch, train_adapter
from pipeline.base.stable_diffusion import Posterior, StableDiffusion
from pipeline.params import TrainSection

Fresh = Callable[[], StableDiffusion]
SETTINGS = TrainSection(
    steps=6, batch=3, learning_rate=1e-2, weight_decay=0.01, max_grad_norm=1.0, noise_offset=0.0, rank=2, alpha=2.0,
    seed=0,
)  # fmt: skip


def samples(base: StableDiffusion, count: int = 2) -> list[Sample]:
    generator = torch.Generator().manual_seed(11)
    return [
        Sample(
            f"{number}.png",
            f"digest {number}",
            Posterior(torch.randn(1, 4, 8, 8, generator=generator), torch.full((1, 4, 8, 8), 0.1)),
            base.condition(["a red hill"]),
            "a red hill",
        )
        for number in range(count)
    ]


def trained(
    base: StableDiffusion, path: Path, settings: TrainSection = SETTINGS, **kwargs: object
) -> dict[str, torch.Tensor]:
    arguments = {"checkpoint_every": 2, "on_step": lambda step, values: None} | kwargs
    train_adapter(base, "a", samples(base), settings, path / "a.checkpoint", **arguments)
    return {key: weight.detach().clone() for key, weight in adapter_weights(base.unet, "a").items()}


def test_an_adapter_is_a_function_of_its_inputs(fresh_tiny: Fresh, tmp_path: Path) -> None:
    for place in ("x", "y", "z"):
        (tmp_path / place).mkdir()
    torch.manual_seed(1)
    one = trained(fresh_tiny(), tmp_path / "x")
    torch.manual_seed(2)
    two = trained(fresh_tiny(), tmp_path / "y")
    other = trained(fresh_tiny(), tmp_path / "z", SETTINGS.model_copy(update={"seed": 1}))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_a_killed_training_goes_on_exactly_where_it_was(fresh_tiny: Fresh, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    seen: dict[str, list[float]] = {"whole": [], "killed": []}

    def note(name: str) -> Callable[[int, Mapping[str, float]], None]:
        return lambda step, values: seen[name].append(values["loss"])

    undisturbed = trained(fresh_tiny(), tmp_path / "whole", on_step=note("whole"))

    def kill(step: int, values: Mapping[str, float]) -> None:
        note("killed")(step, values)
        if step == 4:  # after the checkpoint at 4, within the steps that are lost
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(fresh_tiny(), tmp_path / "killed", on_step=kill)
    seen["killed"] = seen["killed"][:4]
    resumed = trained(fresh_tiny(), tmp_path / "killed", on_step=note("killed"))
    assert all(torch.equal(undisturbed[key], resumed[key]) for key in undisturbed)
    assert seen["killed"] == seen["whole"]


def test_a_finished_training_is_taken_from_its_checkpoint(fresh_tiny: Fresh, tmp_path: Path) -> None:
    steps: list[int] = []
    first = trained(fresh_tiny(), tmp_path)
    again = trained(fresh_tiny(), tmp_path, on_step=lambda step, values: steps.append(step))
    assert steps == [] and all(torch.equal(first[key], again[key]) for key in first)


def test_a_damaged_checkpoint_is_told_and_passed_over(
    fresh_tiny: Fresh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = trained(fresh_tiny(), tmp_path)
    checkpoint = tmp_path / "a.checkpoint"
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    again = trained(fresh_tiny(), tmp_path)
    assert all(torch.equal(first[key], again[key]) for key in first)
    output = capsys.readouterr()
    assert "damaged checkpoint" in output.out + output.err


def test_training_lowers_the_loss_at_fixed_noise_and_leaves_the_base_alone(
    tiny: StableDiffusion, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"steps": 60, "learning_rate": 3e-2})
    frozen = {key: weight.clone() for key, weight in tiny.unet.state_dict().items()}
    validation = draw_batch(tiny, samples(tiny), settings.model_copy(update={"batch": 32}), step=10_000)
    with torch.no_grad():
        before = float(batch_loss(tiny, validation))
    trained(tiny, tmp_path, settings, checkpoint_every=1000)
    with torch.no_grad():
        after = float(batch_loss(tiny, validation))
    assert after < 0.97 * before
    now = {
        key.replace(".base_layer", ""): weight for key, weight in tiny.unet.state_dict().items() if "lora_" not in key
    }
    assert all(torch.equal(now[key], weight) for key, weight in frozen.items())


def test_adapter_weights_are_float32_over_a_bfloat16_base(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    from tests.tiny import open_tiny

    base = open_tiny(tiny_folders["epsilon"], dtype="bfloat16")
    weights = trained(base, tmp_path)
    assert base.unet.conv_in.weight.dtype == torch.bfloat16
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert any(weight.abs().sum() > 0 for key, weight in weights.items() if "lora_B" in key), "nothing was learned"


def test_every_draw_has_its_own_noise_and_an_epoch_takes_every_sample_once(tiny: StableDiffusion) -> None:
    settings = SETTINGS.model_copy(update={"batch": 4})
    batch = draw_batch(tiny, samples(tiny, 1), settings, step=0)
    assert len({tuple(noise.flatten().tolist()) for noise in batch.noise}) == 4
    four = samples(tiny, 4)
    for number, sample in enumerate(four):
        sample.posterior.mean.fill_(number)
        sample.posterior.std.zero_()
    epoch = draw_batch(tiny, four, settings, step=3)
    assert sorted(epoch.clean.mean(dim=(1, 2, 3)).round().tolist()) == [0, 1, 2, 3]


def test_noise_offset_moves_the_channel_means(tiny: StableDiffusion) -> None:
    plain = draw_batch(tiny, samples(tiny), SETTINGS.model_copy(update={"batch": 64}), step=0)
    offset = draw_batch(tiny, samples(tiny), SETTINGS.model_copy(update={"batch": 64, "noise_offset": 0.5}), step=0)
    spread = [float(batch.noise.mean(dim=(2, 3)).std()) for batch in (plain, offset)]
    assert spread[0] == pytest.approx(1 / 8, abs=0.03)  # the mean of 8 x 8 unit Gaussians
    assert spread[1] == pytest.approx((1 / 64 + 0.25) ** 0.5, abs=0.08)


def test_a_loss_that_is_not_finite_stops_with_the_step(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = training.batch_loss
    monkeypatch.setattr(training, "batch_loss", lambda base, batch: plain(base, batch) * float("nan"))
    with pytest.raises(FloatingPointError, match="at step 0"):
        trained(fresh_tiny(), tmp_path)


def test_clipping_clips(fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW does not mind the size of gradients, so look at those that reach it."""
    norms: list[float] = []
    plain = torch.optim.AdamW.step

    def spy(optimizer: torch.optim.AdamW, *args: object, **kwargs: object) -> object:
        grads = [weight.grad for group in optimizer.param_groups for weight in group["params"]]
        norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))
        return plain(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    trained(fresh_tiny(), tmp_path, SETTINGS.model_copy(update={"max_grad_norm": 1e-4}))
    assert len(norms) == SETTINGS.steps and max(norms) == pytest.approx(1e-4, rel=1e-2)
