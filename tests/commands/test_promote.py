"""`morphline promote`: the alias moves to better figures, by the rules of the CI report, and by itself to no others."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.ci.changes import JUDGED
from pipeline.commands import promote
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.state import content_digest
from pipeline.tracking.registry import FIGURES, MODEL_ID, SETTINGS, STATE, champion, open_registry, versions
from tests.project import edit, with_values

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS = Path("reports/metrics/hills.json")
FIRST = {"ghosting": 0.10, "endpoints_psnr": 20.0, "pdv": 0.010, "ppl": 1.0, "naturalness": 1.10,
         "keyframes_strangeness": 1.0}  # fmt: skip
MODEL = "{}.morph.hills"


def tags(figures: dict[str, Any], frames: int = 16) -> dict[str, str]:
    settings = {"keyframes": ["a.png", "b.png"], "frames": frames, "loop": False}
    return {FIGURES: json.dumps({"alps": figures}), SETTINGS: json.dumps({"alps": settings})}


@pytest.mark.parametrize(
    ("change", "better", "told"),
    [
        ({"ghosting": 0.08}, True, "  better: ghosting of alps: 0.08, before 0.1"),
        ({"ghosting": 0.12}, False, "  worse: ghosting of alps: 0.12, before 0.1"),
        ({"ghosting": 0.0901}, False, "  no figure differs by more than chance"),  # tolerance 0.011
        ({"endpoints_psnr": 20.1}, True, "  better: endpoints_psnr of alps: 20.1, before 20"),
        ({"endpoints_psnr": 20.1, "ghosting": 0.2}, False, "  worse: ghosting of alps: 0.2, before 0.1"),
        ({"ppl": 3.0}, False, "  no figure differs by more than chance"),  # neither way is better
        ({"pdv": 0.006}, False, "  no figure differs by more than chance"),  # a share of 0.45
        ({"pdv": 0.005}, True, "  better: pdv of alps: 0.005, before 0.01"),
        ({"naturalness": 1.05}, True, "  better: naturalness of alps: 1.05, before 1.1"),
        ({"naturalness": 1.05, "keyframes_strangeness": 2.0}, False, "  no figure differs by more than chance"),
        ({}, False, "  no figure differs by more than chance"),
    ],
)
def test_figures_are_judged_as_in_the_ci_report(change: dict[str, float], better: bool, told: str) -> None:
    found, reasons = promote.compare(tags(FIRST), tags({**FIRST, **change}))
    assert found is better and told in reasons
    assert all(name in JUDGED or name in ("ppl", "keyframes_strangeness") for name in FIRST)


def test_steps_of_other_frames_are_not_compared_nor_morphs_that_one_lacks() -> None:
    assert promote.compare(tags(FIRST), tags({**FIRST, "pdv": 0.001}, frames=31))[0] is False
    assert promote.compare(tags(FIRST), tags({**FIRST, "pdv": 0.001}))[0] is True
    nothing = [{}, {FIGURES: "no JSON"}, {FIGURES: "[]"}, {FIGURES: json.dumps({"other": FIRST})}]
    for other in nothing:
        found, reasons = promote.compare(other, tags(FIRST))
        assert found is False and reasons == ["  there is nothing to compare: no morph was measured with both"]


@pytest.fixture
def made(ran: Path, tmp_path: Path, database: str, request: pytest.FixtureRequest,
         monkeypatch: pytest.MonkeyPatch) -> Path:  # fmt: skip
    """A project with all results and no run, whose experiment no other test has."""
    project = shutil.copytree(ran, tmp_path / "project")
    experiment = {"tracking.experiment": request.node.name, "tracking.uri": database, "tracking.system_every": ""}
    edit(project / "params.yaml", lambda text: with_values(text, experiment))
    monkeypatch.chdir(project)
    return project


def registry() -> "MlflowClient":
    return open_registry(load_params().tracking)[0]


def model() -> str:
    return MODEL.format(load_params().tracking.experiment)


def results(**figures: float) -> None:
    """Other frames, with such figures."""
    told = json.loads(METRICS.read_text())
    told["morph"] |= figures
    METRICS.write_text(json.dumps(told))
    notes = Path("data/morphs/hills/morph.json")
    edit(notes, lambda text: text + " ")


def refused(name: str, to: int | None = None) -> str:
    with pytest.raises(UserError) as caught:
        promote.run(name, to)
    return str(caught.value)


def test_a_better_morph_becomes_champion_a_worse_one_does_not_and_one_command_goes_back(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results(**FIRST)
    assert promote.run("morph@hills", None)
    assert capsys.readouterr().out == f"{model()}: version 1 is the champion now: there was none\n"
    assert promote.run("morph@hills", None)
    assert capsys.readouterr().out == f"{model()}: version 1 is the champion\n"

    results(ghosting=0.2)
    assert not promote.run("morph@hills", None)
    assert capsys.readouterr().out.splitlines() == [
        f"{model()}: version 1 stays the champion; version 2 is no better",
        "  worse: ghosting of hills: 0.2, before 0.1",
        "  `morphline promote morph@hills --to 2` moves the alias all the same",
    ]
    results(ghosting=0.05)
    assert promote.run("morph@hills", None)
    assert capsys.readouterr().out.splitlines() == [
        f"{model()}: version 3 is the champion now, before it was version 1",
        "  better: ghosting of hills: 0.05, before 0.1",
    ]
    client = registry()
    found = champion(client, model())
    assert found and found.version in (3, "3") and [int(one.version) for one in versions(client, model())] == [1, 2, 3]
    assert client.get_registered_model(model()).description == found.description

    assert promote.run("morph@hills", 1)
    assert capsys.readouterr().out == f"{model()}: version 1 is the champion now, before it was version 3\n"
    back = champion(client, model())
    assert back and int(back.version) == 1
    assert client.get_registered_model(model()).description == back.description
    assert "--to: " in (said := refused("morph@hills", 4)) and "has no version 4" in said and "1, 2, 3" in said


def test_a_version_says_what_it_is_and_answers(made: Path) -> None:
    import mlflow

    promote.run("train@dots", None)
    client, name = registry(), f"{load_params().tracking.experiment}.train.dots"
    (version,) = versions(client, name)
    base = load_params().base
    digest = content_digest(Path("models/adapters/dots"))
    assert version.tags["dvc.models.adapters.dots"] == digest and digest.endswith(".dir")
    assert version.tags["base.digest"] == base.revision and version.tags["base.source"] == base.source
    assert set(json.loads(version.tags[FIGURES])) == {"dots"} and len(version.tags[STATE]) == 16
    assert f"`{base.revision}`" in version.description and "/artifacts/files?artifact_file_path=" in version.description
    uri = load_params().tracking.uri
    mlflow.set_tracking_uri(uri)
    folder = Path(uri.removeprefix("sqlite:///")).parent
    try:
        place = client.get_logged_model(version.tags[MODEL_ID]).artifact_location
        loaded = mlflow.pyfunc.load_model(str(folder / place))
        answer = loaded.predict({"captions": ["a red lake"], "steps": 2})
        assert len(answer["pictures"]) == 1
        with pytest.raises(mlflow.MlflowException) as caught:
            loaded.predict({"captions": []})
        assert caught.value.get_http_status_code() == 400
    finally:
        mlflow.set_tracking_uri(None)
    assert (folder / place / "data/package/preview.png").read_bytes() == Path("reports/samples/dots.png").read_bytes()


def test_the_report_registers_what_there_is_once_and_only_when_asked(made: Path) -> None:
    from pipeline.stages import report

    report.run()
    names = [
        f"{load_params().tracking.experiment}.{kind}.{key}" for kind in ("train", "morph") for key in ("hills", "dots")
    ]
    assert [versions(registry(), name) for name in names] == [[], [], [], []]
    edit(made / "params.yaml", lambda text: with_values(text, {"tracking.register": "true"}))
    for _ in range(2):
        report.run()
    assert [len(versions(registry(), name)) for name in names] == [1, 1, 1, 1]
    assert all(champion(registry(), name) is None for name in names)


def test_names_and_stale_results_are_refused(made: Path) -> None:
    assert "both a set and a morph are named so. Write train@hills" in refused("hills")
    assert "there is no such set or morph. There are the sets dots, hills; the morphs dots, hills." in refused("alps")
    assert "there is no such set or morph" in refused("sample@hills")
    assert "has no version 1 in the registry" in refused("morph@hills", 1)
    lock = (
        "schema: '2.0'\nstages:\n  morph@hills:\n    cmd: x\n    outs:\n    - {path: data/morphs/hills, md5: aa.dir}\n"
    )
    (made / "dvc.lock").write_text(lock)
    assert "data/morphs/hills: it is not what dvc.lock says. Run `dvc repro`" in refused("morph@hills")
    now = content_digest(Path("data/morphs/hills"))
    (made / "dvc.lock").write_text(
        lock.replace("aa.dir", now) + "  evaluate@hills:\n    deps:\n    - {path: data/morphs/hills, md5: aa.dir}\n"
    )
    assert "reports/metrics/hills.json: measured on other frames than there are now" in refused("morph@hills")
    (made / "dvc.lock").unlink()
    METRICS.unlink()
    assert "morph@hills: no figures" in refused("morph@hills")
    assert versions(registry(), model()) == []
