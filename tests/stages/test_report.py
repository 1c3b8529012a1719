"""The stage's outputs; what is on the page is tested in tests/report/test_page.py."""

import csv
import hashlib
import json
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.stages import evaluate, morph, report
from tests.project import edit, with_values


def test_the_summary_holds_the_figures_that_decide(ran: Path) -> None:
    summaries = json.loads((ran / "reports/metrics.json").read_text(encoding="utf-8"))
    assert list(summaries) == ["hills", "dots"]
    for key, figures in summaries.items():
        full = json.loads((ran / f"reports/metrics/{key}.json").read_text(encoding="utf-8"))["morph"]
        assert figures == {
            "endpoint_psnr": pytest.approx(full["endpoints_psnr"], abs=1e-3),
            "ghosting": pytest.approx(full["ghosting"], abs=1e-4),
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


def test_masks_beside_the_prepared_pictures_are_in_the_digest(made: Path) -> None:
    prepared = Path("data/prepared/hills")
    (prepared / ".masks").mkdir()
    (prepared / ".masks/blue.png").write_bytes(b"white")
    names = [".masks/blue.png", *(path.name for path in sorted(prepared.iterdir()) if path.is_file())]
    lines = [f"{name}\0sha256:{hashlib.sha256((prepared / name).read_bytes()).hexdigest()}\n" for name in names]
    report.run()
    page = Path("reports/index.html").read_text(encoding="utf-8")
    assert f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}" in page


def test_what_is_not_made_without_adapters_is_not_measured_and_not_shown(ran: Path, made: Path) -> None:
    edit(made / "params.yaml", lambda text: with_values(text, {"morph.without_adapters": "false"}))
    frames = [path.read_bytes() for path in sorted((made / "data/morphs/hills/frames").iterdir())]
    morph.run("hills")
    assert [path.read_bytes() for path in sorted((made / "data/morphs/hills/frames").iterdir())] == frames
    assert not (made / "data/morphs/hills/no-lora").exists()
    evaluate.run("hills")
    figures = json.loads((made / "reports/metrics/hills.json").read_text(encoding="utf-8"))
    before = json.loads((ran / "reports/metrics/hills.json").read_text(encoding="utf-8"))
    assert figures == {name: before[name] for name in ("morph", "cross_fade")}
    with (made / "reports/curves/morphs/hills.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == ["position", "morph", "cross_fade"]
    report.run()
    of_hills, of_dots = (made / "reports/index.html").read_text(encoding="utf-8").split('id="figures-dots"')
    assert "without adapters, frame" not in of_hills.partition('id="figures-hills"')[0]
    assert 'data-variant="without adapters"' not in of_hills and 'data-variant="cross-fade"' in of_hills
    assert 'data-variant="without adapters"' in of_dots
