"""Stage `prepare@<set>`: raw pictures become training pictures."""

from pathlib import Path

from pipeline.params import load_params
from pipeline.pictures.preparing import LEDGER, prepare_set
from pipeline.tracking import track


def run(key: str) -> None:
    """Write data/prepared/<set>."""
    params = load_params()
    spec = params.get_set(key)
    raw, out = Path("data/raw", key), Path("data/prepared", key)
    with track(f"prepare@{key}", params.tracking, spec.prepare.model_dump(), datasets={f"raw {key}": raw}) as tracker:
        prepare_set(raw, out, spec.prepare, params.machine.workers)
        tracker.artifact(out / LEDGER)
