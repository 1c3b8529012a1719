from pathlib import Path

from pipeline.params import load_params
from pipeline.report.plots import Training
from pipeline.report.trainings import AdapterRow, adapter_row, read_trainings, stop_reason
from tests.declarations import ROOT


def test_why_a_training_stopped() -> None:
    settings = load_params(ROOT / "params.yaml").train.model_copy(update={"steps": 100, "patience": 2})
    assert stop_reason(100, [0.3, 0.2], settings) == "all steps done"
    assert stop_reason(60, [0.3, 0.2, 0.21, 0.22], settings) == "no lower loss at fixed noise 2 times in a row"
    aimed = settings.model_copy(update={"target_loss": 0.2})
    assert stop_reason(60, [0.3, 0.19], aimed) == "loss at fixed noise reached 0.2"
    assert stop_reason(60, [0.3, 0.25, 0.26, 0.27], aimed) == "no lower loss at fixed noise 2 times in a row"


def test_an_adapter_that_stopped_early_has_fewer_losses(tmp_path: Path) -> None:
    (tmp_path / "curves.csv").write_text(
        "step,learning_rate,loss,grad_norm,loss a,loss b,fixed-noise loss a,fixed-noise loss b\n"
        "0,0.1,2,1,1,3,5,6\n1,0.05,2,1,2,2,,\n2,0,3,1,3,,,4\n3,,,,,,2,\n",
        encoding="utf-8",
    )
    trainings, rates = read_trainings(tmp_path / "curves.csv")
    assert trainings == {"a": Training([1, 2, 3], {0: 5, 3: 2}), "b": Training([3, 2], {0: 6, 2: 4})}
    assert rates == [0.1, 0.05, 0]


def test_an_adapter_is_listed_with_its_first_and_last_loss_at_fixed_noise() -> None:
    settings = load_params(ROOT / "params.yaml").train.model_copy(update={"steps": 3})
    row = adapter_row("a", Training([1, 2, 3], {0: 5, 2: 2}), settings)
    assert row == AdapterRow("a", 3, 5, 2, "all steps done")
    assert adapter_row("a", Training([1, 2, 3]), settings) == AdapterRow("a", 3, None, None, "all steps done")
