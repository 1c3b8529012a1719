"""What the dashboard says of a run: a picture, what it is, how to make it again; and how busy the machine was."""

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline.state import PipelineState
from pipeline.tracking import close_parent, sync, track
from pipeline.tracking.descriptions import of_parent, of_stage, of_state
from pipeline.tracking.names import parent_metric, parent_param
from tests.tracking.conftest import Book, git, open_book, section, wait_a_moment
from tests.tracking.stub import Stub

NOTE = "mlflow.note.content"
STATE = PipelineState("d", "abc Paint", "0123456789abcdef", "main", "Paint the alps", (), "")


def test_a_committed_state_says_how_to_come_back_to_it() -> None:
    assert of_state(STATE) == (
        "**Paint the alps** (`0123456789ab` on `main`)\n\n"
        "Make it again: `git checkout 0123456789ab`, then `dvc repro` (or `dvc pull`, where a DVC remote has it)"
    )
    assert of_stage(STATE, "morph@alps") == (
        "Make it again: `git checkout 0123456789ab`, then `dvc repro morph@alps`"
        " (or `dvc pull morph@alps`, where a DVC remote has it)\n\n"
        "Run it again: `dvc repro --force --single-item morph@alps`"
    )


def test_an_experiment_is_applied_and_what_was_edited_promises_nothing() -> None:
    tried = replace(STATE, experiment="rank-4", edited=("params.yaml",))
    assert "Make it again: `dvc exp apply rank-4`, then `dvc repro`" in of_state(tried)
    edited = replace(STATE, edited=("params.yaml",))
    assert of_state(edited) == "**Paint the alps** (`0123456789ab` on `main`; edited since: `params.yaml`)"
    assert of_stage(edited, "report") == "Run it again: `dvc repro --force --single-item report`"
    assert of_state(replace(STATE, commit="")) == ""


@pytest.mark.parametrize(
    ("stage", "page"),
    [("train@alps", "sets/alps"), ("evaluate@alps", "morphs/alps"), ("edit@a-b", "edits/a-b"), ("report", None)],
)
def test_what_the_studio_ran_leads_back_to_it(stage: str, page: str | None) -> None:
    told = of_stage(STATE, stage, "http://127.0.0.1:8300")
    link = f"[http://127.0.0.1:8300/{page}](http://127.0.0.1:8300/{page})"
    if page is None:
        assert told == of_stage(STATE, stage)
    else:
        assert told == f"{of_stage(STATE, stage)}\n\nSee it in the studio, while that runs: {link}"


def test_a_parent_shows_its_stages_pictures_and_keeps_what_people_wrote() -> None:
    begun = "**Paint** (`0123`)\n\n![old](x)\n\nMake it again: so\n\nRan: `a`\n\nMy own remark"
    notes = ["Run it again", "![the alps](get-artifact?run_uuid=1)\n\nmore"]
    assert of_parent(begun, notes, ["train@alps", "morph@alps"], ["check"], "2") == (
        "**Paint** (`0123`)\n\n![the alps](get-artifact?run_uuid=2)\n\nMake it again: so\n\nMy own remark\n\n"
        "Ran: `train@alps`, `morph@alps`\n\nDid not need to run: `check`"
    )


def test_a_morph_shows_its_strip_there_and_in_its_parent(book: Book, project: Path) -> None:
    Image.new("RGB", (1600, 400), (200, 10, 10)).save(project / "strip.png")
    with track("morph@alps", book.params, {}) as tracker:
        tracker.show(project / "strip.png", "alps: the morph")
    wait_a_moment()
    with track("report", book.params, {}):
        pass
    close_parent(book.params)
    run, parent = book.only("morph@alps"), book.parents()[0]
    picture = "![alps: the morph](get-artifact?path=pictures%2Fpreviews%2Fmorph.alps.png&run_uuid={})"
    note = run.data.tags[NOTE].split("\n\n")
    assert note[0] == picture.format(run.info.run_id)
    assert "`pictures/previews/morph.alps.png`" in note[1], "in words too, for readers that cannot show it"
    commit = git(project, "rev-parse", "HEAD")[:12]
    assert note[2].startswith(f"Make it again: `git checkout {commit}`, then `dvc repro morph@alps`")
    for shown in (run, parent):
        with Image.open(book.artifacts(shown) / "pictures/previews/morph.alps.png") as preview:
            assert preview.size == (640, 160)
    above = parent.data.tags[NOTE].split("\n\n")
    assert above[1] == picture.format(parent.info.run_id), "of its own, so that it shows on any server"
    assert above[-2:] == ["Ran: `morph@alps`, `report`", "Did not need to run: `prepare@alps`, `train@alps`"]


def test_params_and_figures_have_short_names_in_the_parent(book: Book) -> None:
    given = {"base": {"source": "models/pocket"}, "train": {"rank": 8}, "adapter": "image"}
    with track("train@alps", book.params, given) as tracker:
        tracker.metrics({"final_loss": 0.25})
        tracker.metrics({"detail": 1.0}, compared=False)
    with track("report", book.params, {}) as tracker:
        tracker.metrics({"alps/endpoint_psnr": 28.0})
    (parent,) = book.parents()
    assert parent.data.params == {"base.source": "models/pocket", "train.alps.rank": "8", "train.alps.adapter": "image"}
    assert parent.data.metrics == {"train.alps/final_loss": 0.25, "alps/endpoint_psnr": 28.0}
    assert book.only("train@alps").data.metrics == {"final_loss": 0.25, "detail": 1.0}


def test_names_in_the_parent() -> None:
    assert parent_param("evaluate@alps", "max_side") == "evaluate.alps.max_side"
    assert parent_param("morph@alps", "morph.frames") == "morph.alps.frames"
    assert parent_param("pocket", "seed") == "pocket.seed"
    assert parent_metric("train@alps", "final_loss") == "train.alps/final_loss"


def test_the_machine_is_watched_while_a_stage_works(book: Book) -> None:
    with track("train@alps", book.params.model_copy(update={"system_every": 0.05}), {}) as tracker:
        time.sleep(0.5)
        tracker.metric("loss", 1.0, 0)
    run = book.only("train@alps")
    percent = book.history(run, "system/cpu_utilization_percentage")
    memory = book.history(run, "system/system_memory_usage_megabytes")
    assert [step for step, _ in percent] == list(range(len(percent))) and len(percent) >= 2
    assert all(0 <= value <= 100 for _, value in percent)
    assert all(100 < value < 1e8 for _, value in memory)
    assert "system/cpu_utilization_percentage" not in book.parents()[0].data.metrics


def test_what_the_machine_did_arrives_when_the_server_is_back(stub: Stub, project: Path) -> None:
    stub.stop()
    params = section(stub.uri, required=False, system_every=0.05)
    with track("train@alps", params, {}):
        time.sleep(0.3)
    stub.start()
    assert [outcome.failed for outcome in sync(params)] == [False, False]
    here = open_book(project, "morphline")
    seen = here.history(here.only("train@alps"), "system/system_memory_usage_percentage")
    assert seen and stub.history("train@alps", "system/system_memory_usage_percentage") == seen


def test_a_monitor_that_fails_costs_no_result(
    book: Book, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

    def fail(monitor: CPUMonitor) -> None:
        raise RuntimeError("no /proc here")

    monkeypatch.setattr(CPUMonitor, "collect_metrics", fail)
    with track("train@alps", book.params.model_copy(update={"system_every": 0.05}), {}) as tracker:
        time.sleep(0.1)
        tracker.metric("loss", 1.0, 0)
    run = book.only("train@alps")
    assert run.info.status == "FINISHED" and math.isclose(run.data.metrics["loss"], 1)
    assert "The machine is not watched any more: RuntimeError: no /proc here" in caplog.text
