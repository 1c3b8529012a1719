"""What commands write over with --force: what they have written before, and nothing of the pipeline's or a person's."""

import shutil
from pathlib import Path

import pytest

from pipeline.ci import report
from pipeline.commands import export, fuse, mix, package
from pipeline.errors import UserError
from pipeline.params import load_params
from tests.project import contents


@pytest.mark.parametrize("out", ["data", "data/raw/hills", "models/adapters/hills", ".", "..", "models", "reports/new"])
def test_the_pipelines_own_files_stay(made: Path, out: str) -> None:
    before = contents(made)
    files_beside = out in (".", "..", "models")
    for write in (
        lambda: package.run("train@dots", Path(out), force=True),
        lambda: fuse.run(["dots"], Path(out), force=True),
        *(() if files_beside else (
            lambda: export.run("hills", Path(out), force=True),
            lambda: mix.run(["dots"], Path(out, "set.safetensors"), None, force=True),
        )),
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"--out: .*(the pipeline's own files are|this project's folder)"):
            write()
    assert contents(made) == before


def test_a_package_replaces_a_package_alone(made: Path) -> None:
    package.run("train@dots", Path("served"), force=False)
    before = set(contents(Path("served")))
    with pytest.raises(UserError, match="exists already"):
        package.run("train@dots", Path("served"), force=False)
    package.run("morph@hills", Path("served"), force=True)
    assert set(contents(Path("served"))) != before
    Path("served/notes.txt").write_text("mine")
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("mine")
    for out, said in (("served", "it holds notes.txt, which would be lost"), ("mine", "no model that was packaged"),
                      ("params.yaml", "no model that was packaged")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            package.run("train@dots", Path(out), force=True)
    assert Path("mine/thesis.txt").read_text() == Path("served/notes.txt").read_text() == "mine"
    assert Path("params.yaml").is_file()


def test_a_fused_base_with_a_persons_file_in_it_is_not_replaced(made: Path) -> None:
    shutil.copytree(load_params().base.source, "fused")
    Path("fused/mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"fused: it holds mine\.txt, which would be lost"):
        fuse.run(["dots"], Path("fused"), force=True)
    Path("fused/mine.txt").unlink()
    with pytest.raises(UserError, match="it is the base itself"):
        fuse.check_replaceable(Path("fused"), [None, "elsewhere", "fused"])
    fuse.check_replaceable(Path("fused"), [None, "elsewhere"])


def test_a_report_replaces_a_report_alone(made: Path) -> None:
    before = Path("params.yaml").read_bytes()
    with pytest.raises(UserError, match=r"params\.yaml: it is there, and no report of this command"):
        report.run("HEAD", Path("params.yaml"), Path("pictures"), None)
    assert Path("params.yaml").read_bytes() == before
