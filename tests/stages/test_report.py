"""The stage's outputs; what is on the page is tested in tests/report/test_page.py."""

import json
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.stages import report


def test_the_summary_holds_the_figures_that_decide(ran: Path) -> None:
    summaries = json.loads((ran / "reports/metrics.json").read_text(encoding="utf-8"))
    assert list(summaries) == ["hills", "dots"]
    for key, figures in summaries.items():
        full = json.loads((ran / f"reports/metrics/{key}.json").read_text(encoding="utf-8"))["morph"]
        assert figures == {
            "endpoint_psnr": pytest.approx(full["endpoints_psnr"], abs=1e-3),
            "naturalness": pytest.approx(full["naturalness"], abs=1e-4),
            "endpoint_gap": pytest.approx(full["endpoints_worst_psnr_gap"], abs=1e-3),
            "path_length": pytest.approx(full["neighbours_sum"], abs=1e-4),
            "max_over_mean": pytest.approx(full["neighbours_max_over_mean"], abs=1e-4),
        }


@pytest.mark.parametrize(
    ("missing", "stage"), [("metrics/hills.json", "evaluate@hills"), ("samples/dots.png", "sample@dots")]
)
def test_an_output_that_is_missing_is_named_with_its_stage(project: Path, missing: str, stage: str) -> None:
    for name in ("metrics/hills.json", "metrics/dots.json", "samples/hills.png", "samples/dots.png"):
        if name != missing:
            path = project / "reports" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    with pytest.raises(UserError, match=stage):
        report.run()
    assert not (project / "reports/index.html").exists() and not (project / "reports/metrics.json").exists()
