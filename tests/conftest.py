"""Fixtures for all rooms: tiny bases on disk, opened fresh for each test, and tiny projects."""

import inspect
import os
import shutil

# Small tensors: more threads only wait for each other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest
from filelock import FileLock

from tests.hostile import generators
from tests.project import make_project

ROOT = Path(__file__).parent.parent

# With `--dist loadfile` a worker takes one file after the other: a long one that is taken last is waited for. The first
# two go to two workers, of which one makes what `ran` is, and the other does not need it yet.
LONGEST = (
    "stages/test_same_bytes.py", "stages/test_train_processes.py", "test_pipeline.py", "studio/test_browser.py",
    "stages/test_two_hosts.py", "test_devices.py", "tracking/test_real_server.py", "workers/test_real_slurm.py",
    "tracking/test_mirror.py", "workers/test_work.py", "workers/test_fan_out.py", "test_recording.py",
    "stages/test_pocket.py", "stages/test_edit.py", "training/test_loop.py", "stages/test_train_interrupted.py",
    "stages/test_shared_stages.py", "processes/test_chunks.py", "sampling/test_refining.py",
    "workers/test_real_stages.py", "stages/test_train.py", "stages/test_refined.py", "commands/test_ui.py",
    "hostile/test_results.py", "hostile/test_full_disk.py", "stages/test_repeat.py", "pocket/test_pocket.py",
    "tracking/test_team_servers.py", "serving/test_serve.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    assert all(path.is_file() for path in places), "LONGEST names a file that is not there"
    items.sort(key=lambda item: places.get(item.path, len(places)))
    if generators.SECONDS:
        tests = [item for item in items if isinstance(item, pytest.Function)]
        searching = sum("@hostile(" in inspect.getsource(item.function) for item in tests)
        generators.share[0] = generators.SECONDS / max(searching, 1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How far a search for hostile input by hand has gone."""
    for name, count in generators.tried.items():
        terminalreporter.write_line(f"{count} examples: {name}")


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prediction type to the folder of a tiny base."""
    from tests.tiny import build_tiny

    folders = {}
    for prediction_type in ("epsilon", "v_prediction"):
        folders[prediction_type] = tmp_path_factory.mktemp("bases") / prediction_type
        build_tiny(prediction_type).save_pretrained(folders[prediction_type])
    return folders


@pytest.fixture(params=["epsilon", "v_prediction"])
def tiny(request: pytest.FixtureRequest, tiny_folders: dict[str, Path]):
    """A fresh tiny base of either prediction type."""
    from tests.tiny import open_tiny

    return open_tiny(tiny_folders[request.param])


@pytest.fixture
def fresh_tiny(tiny_folders: dict[str, Path]) -> Callable:
    """Opens as many fresh copies of the epsilon base as a test needs."""
    from tests.tiny import open_tiny

    return lambda: open_tiny(tiny_folders["epsilon"])


@pytest.fixture(scope="session", autouse=True)
def plain_environment() -> None:
    """The tests' runs belong in databases of their own, whatever the shell they are started from is set to."""
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
        del os.environ[name]


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a migrated MLflow database, which takes 6 s to make."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"
    MlflowClient(uri).search_experiments()
    path = Path(uri.removeprefix("sqlite:///"))
    shutil.copy(path, path.with_name("empty.db"))
    return uri


@pytest.fixture(scope="session")
def empty_database(database: str) -> Path:
    """Such a database as no run has been in. To be copied, not to be changed."""
    return Path(database.removeprefix("sqlite:///")).with_name("empty.db")


def run_all(project: Path) -> None:
    """Every stage, as DVC would order them."""
    from pipeline.stages import check, edit, evaluate, morph, prepare, report, sample, styles, train

    with chdir(project):
        check.run()
        for stage in (prepare, train, sample):
            for key in ("hills", "dots"):
                stage.run(key)
        for stage in (morph, evaluate):
            for key in ("hills", "dots"):
                stage.run(key)
        styles.run()
        edit.run("hills")
        report.run()


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_folders: dict[str, Path], database: str) -> Path:
    """A project with all outputs made, by the first of pytest's workers that needs it. Not to be changed.

    Its runs are in a database of its own, and with them those of its copies.
    """
    top = tmp_path_factory.getbasetemp()
    top = (top.parent if "PYTEST_XDIST_WORKER" in os.environ else top) / "ran"
    top.mkdir(exist_ok=True)
    with FileLock(top / "lock"):
        if not (top / "made").exists():
            shutil.rmtree(top / "project", ignore_errors=True)  # of a worker that failed
            shutil.copy(database.removeprefix("sqlite:///"), top / "mlflow.db")
            run_all(make_project(top / "project", tiny_folders["epsilon"], f"sqlite:///{top}/mlflow.db"))
            (top / "made").touch()
    return top / "project"


@pytest.fixture
def made(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished project as the working folder."""
    project = Path(shutil.copytree(ran, tmp_path / "project"))
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def project(tmp_path: Path, tiny_folders: dict[str, Path], database: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh project as the working folder, with nothing made yet."""
    folder = make_project(tmp_path / "project", tiny_folders["epsilon"], database)
    monkeypatch.chdir(folder)
    return folder
