"""The report of a change, in a small Git repository with DVC, without GitHub or a network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.stages import ci_report
from pipeline.stages.ci_report import Change


def test_only_keys_that_differ_are_told_dotted_and_in_order() -> None:
    before = {"train": {"steps": 10, "rank": 8}, "sets": {"a": {"train": {}}}, "gone": 1}
    now = {"train": {"steps": 20, "rank": 8}, "sets": {"a": {"train": {"steps": 5}}}}
    assert ci_report.changes(before, now) == [
        Change("gone", 1, None),
        Change("sets.a.train", {}, None),
        Change("sets.a.train.steps", None, 5),
        Change("train.steps", 10, 20),
    ]
    assert ci_report.changes(now, now) == []


@pytest.mark.parametrize(
    ("key", "before", "now", "said"),
    [
        ("alps.morph.endpoints_psnr", 20.0, 21.0, "better"), ("alps.morph.endpoints_psnr", 21.0, 20.0, "worse"),
        ("alps.morph.endpoints_psnr_gap", 0.5, 0.7, "worse"), ("x.neighbours_max_over_mean", 3.0, 1.5, "better"),
        ("x.endpoints_perceptual", 0.1, 0.2, "worse"), ("x.endpoints_ssim", 0.1, 0.2, "better"),
        ("x.neighbours_sum", 1.0, 2.0, ""), ("x.endpoints_psnr", None, 2.0, ""),
        ("x.endpoints_psnr", 2.0, 2.0 + 1e-9, ""),
    ],
)  # fmt: skip
def test_figures_are_better_or_worse_by_what_they_are(key: str, before: float, now: float, said: str) -> None:
    assert ci_report.verdict(Change(key, before, now)) == said


def test_the_worse_figures_come_first_and_nothing_breaks_the_table() -> None:
    rows = [Change("a.endpoints_psnr", 1.0, 2.0), Change("b.endpoints_psnr", 2.0, 1.0), Change("c|d", "<b>", "x\ny")]
    lines = ci_report.figures_part(rows).splitlines()
    assert "worse" in lines[4] and "better" in lines[5]
    assert lines[6] == "| `c\\|d` | &lt;b> | x y |  |"
    assert ci_report.figures_part([]).endswith("unchanged")


def test_stages_that_changed_ran_and_the_others_were_skipped() -> None:
    before = {"prepare@a": {"md5": 1}, "train@a": {"md5": 2}, "old": {}}
    now = {"prepare@a": {"md5": 1}, "train@a": {"md5": 3}, "morph@a": {}}
    assert ci_report.stages_part(before, now).splitlines() == [
        "**Ran:** `train@a`, `morph@a`  ", "**Skipped:** `prepare@a`  ", "**Gone:** `old`",
    ]  # fmt: skip


STAGE = """\
stages:
  morph:
    foreach: [a]
    do:
      cmd: {python} make.py
      deps: [make.py]
      params: [shade]
      outs: ["data/morphs/${{item}}"]
      metrics: [{{"reports/metrics/${{item}}.json": {{cache: false}}}}]
"""
MAKE = """\
import json
from pathlib import Path
from PIL import Image
shade = int(Path("params.yaml").read_text().split()[1])
for folder in ("data/morphs/a", "reports/metrics"):
    Path(folder).mkdir(parents=True, exist_ok=True)
Image.new("RGB", (40, 20), (shade, 0, 0)).save("data/morphs/a/strip.png")
Path("reports/metrics/a.json").write_text(json.dumps({"morph": {"endpoints_psnr": shade / 10}}))
"""


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one stage, committed at shade 50 and then made again at 200."""
    monkeypatch.chdir(tmp_path)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "A")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@example.org")
    Path("dvc.yaml").write_text(STAGE.format(python=sys.executable))
    Path("make.py").write_text(MAKE)
    Path("params.yaml").write_text("shade: 50\n")
    run("git", "init", "-q", "-b", "main")
    run(sys.executable, "-m", "dvc", "init", "-q")
    run(sys.executable, "-m", "dvc", "repro", "-q")
    run("git", "add", "-A")
    run("git", "commit", "-qm", "before")
    Path("params.yaml").write_text("shade: 200\n")
    run(sys.executable, "-m", "dvc", "repro", "-q")
    return tmp_path


def test_a_whole_report(changed: Path) -> None:
    ci_report.run("main", Path("report/report.md"), Path("report/pictures"), "https://example.org/p/")
    text = Path("report/report.md").read_text(encoding="utf-8")
    assert text.startswith(ci_report.MARK)
    assert "**Ran:** `morph@a`" in text and "| `shade` | 50 | 200 |" in text
    assert "| `a.morph.endpoints_psnr` | 5 | 20 | 🔺 better |" in text
    assert "![a, before](https://example.org/p/a-before.webp)" in text
    shades = {}
    for when in ("before", "now"):
        with Image.open(f"report/pictures/a-{when}.webp") as picture:
            shades[when] = picture.convert("RGB").getpixel((5, 5))[0]
    assert shades["before"] == pytest.approx(50, abs=6) and shades["now"] == pytest.approx(200, abs=6)
    assert sorted(path.name for path in Path("report/pictures").iterdir()) == ["a-before.webp", "a-now.webp"]

    ci_report.run("HEAD", Path("again.md"), Path("report/pictures"), None)
    assert "`a-now.webp` among the run's artifacts" in Path("again.md").read_text(encoding="utf-8")
    run("git", "commit", "-qam", "now")
    ci_report.run("HEAD", Path("same.md"), Path("other"), None)
    same = Path("same.md").read_text(encoding="utf-8")
    assert "**Ran:** nothing" in same and same.count("unchanged") == 2 and "the same frames" in same
    assert not list(Path("other").iterdir())


def test_a_revision_that_is_not_there_is_told(changed: Path) -> None:
    with pytest.raises(UserError, match="no revision 'nowhere'"):
        ci_report.run("nowhere", Path("report.md"), Path("pictures"), None)
    assert not Path("report.md").exists()


def test_frames_that_no_cache_has_are_said_to_be_missing(changed: Path) -> None:
    import shutil

    shutil.rmtree(".dvc/cache")
    ci_report.run("main", Path("report.md"), Path("pictures"), None)
    assert "before: not in this machine's cache" in Path("report.md").read_text(encoding="utf-8")


def test_figures_of_a_morph_that_is_new_are_told(changed: Path) -> None:
    Path("reports/metrics/b.json").write_text(json.dumps({"morph": {"endpoints_psnr": 3.0}}))
    ci_report.run("main", Path("report.md"), Path("pictures"), None)
    assert "| `b.morph.endpoints_psnr` |  | 3 |  |" in Path("report.md").read_text(encoding="utf-8")
