"""The report of a change, in a small Git repository with DVC, without GitHub or a network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline.ci import report as ci_report
from pipeline.errors import UserError
from tests.declarations import ROOT

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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one stage, committed at shade 50 and then made again at 200."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        name_author(patch)
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
    return folder


def name_author(patch: pytest.MonkeyPatch) -> None:
    """Git commits by somebody, whatever the machine is set to."""
    for name in ("AUTHOR", "COMMITTER"):
        patch.setenv(f"GIT_{name}_NAME", "A")
        patch.setenv(f"GIT_{name}_EMAIL", "a@example.org")


@pytest.fixture
def changed(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that project, to be worked in."""
    folder = tmp_path / "project"
    shutil.copytree(made, folder, symlinks=True)
    monkeypatch.chdir(folder)
    name_author(monkeypatch)
    return folder


def test_a_whole_report(changed: Path) -> None:
    ci_report.run("main", Path("report/report.md"), Path("report/pictures"), "https://example.org/p/")
    text = Path("report/report.md").read_text(encoding="utf-8")
    assert text.startswith(ci_report.MARK) and "` (`before`)" in text
    assert "**Ran, results changed:** `morph@a`" in text and "| `shade` | 50 | 200 |" in text
    assert "| `a.morph.endpoints_psnr` | 5 | 20 | +15 | 🟢 better |" in text
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
    assert (
        "**Ran" not in same
        and "**Skipped:** `morph@a`" in same
        and same.count("unchanged") == 2
        and "the same frames" in same
    )
    assert not list(Path("other").iterdir())


def test_a_revision_that_does_not_exist_is_refused(changed: Path) -> None:
    with pytest.raises(UserError, match="no revision 'nowhere'"):
        ci_report.run("nowhere", Path("report.md"), Path("pictures"), None)
    assert not Path("report.md").exists()


def test_frames_that_no_cache_has_are_reported_missing(changed: Path) -> None:
    shutil.rmtree(".dvc/cache")
    ci_report.run("main", Path("report.md"), Path("pictures"), None)
    assert "before: not in this machine's cache" in Path("report.md").read_text(encoding="utf-8")


def test_figures_of_a_new_morph_are_reported(changed: Path) -> None:
    Path("reports/metrics/b.json").write_text(json.dumps({"morph": {"endpoints_psnr": 3.0}}))
    ci_report.run("main", Path("report.md"), Path("pictures"), None)
    assert "| `b.morph.endpoints_psnr` |  | 3 |  |  |" in Path("report.md").read_text(encoding="utf-8")


def test_a_metrics_file_that_links_elsewhere_is_not_read(changed: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"token": "abc"}')
    Path("reports/metrics/b.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UserError, match=r"reports/metrics/b\.json: it is a link"):
        ci_report.run("main", Path("report.md"), Path("pictures"), None)
    assert not Path("report.md").exists()


def test_before_is_made_on_this_machine_and_the_checkout_is_left_as_it_was(changed: Path) -> None:
    before = str(ROOT / ".ci/before")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def make(revision: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", before, revision]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    refused = make("main")  # edited since
    assert refused.returncode == 1 and "commit your changes" in refused.stderr
    run("git", "checkout", "-qb", "change")
    Path("reports/metrics/a.json").write_text("{}")  # as if made elsewhere
    run("git", "commit", "-qam", "now")
    done = make("main")
    assert done.returncode == 0 and done.stdout.startswith("BEFORE="), done.stderr
    commit = done.stdout.strip().removeprefix("BEFORE=")
    branch = subprocess.run(["git", "status", "-sb"], capture_output=True, text=True, check=True).stdout
    assert branch.split() == ["##", "change"]
    run(sys.executable, "-m", "dvc", "repro", "-q")
    ci_report.run(commit, Path("report.md"), Path("pictures"), None)
    assert "| `a.morph.endpoints_psnr` | 5 | 20 | +15 | 🟢 better |" in Path("report.md").read_text(encoding="utf-8")
