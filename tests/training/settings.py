"""Training params small enough for tests; each test changes what it is about."""

from pipeline.params import load_params
from tests.declarations import ROOT

SETTINGS = load_params(ROOT / "params.yaml").train.model_copy(
    update={
        "steps": 6,
        "batch": 3,
        "learning_rate": 1e-2,
        "b_rate": 1.0,
        "schedule": "constant",
        "rank": 2,
        "alpha": 2.0,
    }  # fmt: skip
)
