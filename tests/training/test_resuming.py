from pathlib import Path

import pytest
import torch

from pipeline.training import loop
from pipeline.training.checkpoints import Checkpoints, TrainState
from pipeline.training.loop import Job, TrainingSetup
from tests.tiny import in_double
from tests.training.jobs import Fresh, Killed, kill_at, trained, weights
from tests.training.settings import SETTINGS


@pytest.mark.parametrize(("step", "objective"), [(1, "denoise"), (2, "smooth"), (5, "smooth"), (5, "consistency")])
def test_a_killed_training_goes_on_exactly_where_it_was(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, objective: str
) -> None:
    """The moving mean of an objective included."""
    settings = SETTINGS.model_copy(update={"validate_every": 3, "schedule": "linear", "objective": objective})
    calm = trained(fresh_tiny(), tmp_path / "calm", settings)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(step, patch)
        trained(fresh_tiny(), tmp_path / "killed", settings)
    resumed = trained(fresh_tiny(), tmp_path / "killed", settings)
    for name, state in calm.items():
        assert resumed[name].tensors.keys() == state.tensors.keys()
        assert ("objective/mean" in state.tensors) is (objective == "smooth")
        for key, tensor in state.tensors.items():
            assert torch.equal(tensor, resumed[name].tensors[key]), key


def test_a_finished_training_is_taken_from_its_checkpoint(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = weights(trained(fresh_tiny(), tmp_path))
    kill_at(0, monkeypatch)
    monkeypatch.setattr(loop, "train_pack", None)
    again = weights(trained(fresh_tiny(), tmp_path))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_adapters_at_different_steps_catch_up_and_go_on_together(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = weights(trained(in_double(fresh_tiny()), tmp_path / "calm"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(5, patch)
        trained(in_double(fresh_tiny()), tmp_path / "killed")
    for path in (tmp_path / "killed/identity-1").iterdir():
        path.unlink()
    packs, plain = [], loop.train_pack

    def spy(setup: TrainingSetup, group: list[Job], states: dict[str, TrainState], until: int) -> None:
        packs.append((len(group), states[group[0].name].step))
        plain(setup, group, states, until)

    monkeypatch.setattr(loop, "train_pack", spy)
    resumed = weights(trained(in_double(fresh_tiny()), tmp_path / "killed"))
    assert packs == [(1, 0), (3, 4)]
    assert all(torch.allclose(calm[name], resumed[name], atol=1e-10) for name in calm)


@pytest.mark.parametrize(("step", "gone_back"), [(5, 2), (3, 0)])
def test_a_pack_killed_while_it_was_saved_goes_back_to_where_all_of_it_was(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, gone_back: int
) -> None:
    calm = trained(fresh_tiny(), tmp_path / "calm")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(step, patch)
        trained(fresh_tiny(), tmp_path / "killed")
    last = tmp_path / "killed/identity-1/checkpoint.safetensors"
    before = last.with_name("checkpoint-before.safetensors")
    if before.exists():
        before.replace(last)  # as if killed before this one's turn
    else:
        last.unlink()
    packs, plain = [], loop.train_pack

    def spy(setup: TrainingSetup, group: list[Job], states: dict[str, TrainState], until: int) -> None:
        packs.append((len(group), {states[job.name].step for job in group}))
        plain(setup, group, states, until)

    monkeypatch.setattr(loop, "train_pack", spy)
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
