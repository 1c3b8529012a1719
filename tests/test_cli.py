"""The command line: light, explained, and plain about mistakes."""

import gc
import re
import shlex
import signal
import subprocess
import sys
from contextlib import nullcontext
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from pipeline import stage_commands
from pipeline.cli import app
from pipeline.importing import without_collector
from tests.project import ROOT, contents, edit, make_project, with_values

COMMANDS = typer.main.get_command(app).commands
STAGES = {
    "prepare": "hills", "train": "hills", "sample": "hills", "frames": "hills", "evaluate": "hills", "edit": "hills",
    "styles": None, "report": None,
}  # fmt: skip
HEAVY = {
    "torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "mlflow", "pydantic", "numpy", "PIL", "av",
    "matplotlib", "ruamel", "huggingface_hub",
}  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, tiny_folders: dict[str, Path], database: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_project(tmp_path / "project", tiny_folders["epsilon"], database)
    monkeypatch.chdir(folder)
    return folder


def refused(*arguments: str) -> list[str]:
    """The user's mistakes as a command reports them: a headline and one line for each, exit code 1, no traceback."""
    answer = CliRunner().invoke(app, list(arguments))
    assert answer.exit_code == 1, answer.output
    headline, *problems = answer.stderr.splitlines()
    assert headline == f"morphline {arguments[0]}: {len(problems)} problem(s)"
    assert "Traceback" not in answer.stderr and answer.stdout == ""
    return [problem.strip() for problem in problems]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], []])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom pipeline.cli import app\n"
        "try:\n    app(sys.argv[1:])\n"
        "finally:\n    print('IMPORTED', *{name.partition('.')[0] for name in sys.modules})"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "Usage: " in answer.stdout and "IMPORTED" in answer.stdout
    imported = set(answer.stdout.partition("IMPORTED")[2].split())
    # Typer itself needs pydantic (20 ms) to explain one command's arguments.
    assert not (HEAVY - {"pydantic"} if "train" in arguments else HEAVY) & imported


def test_the_installed_script_runs() -> None:
    script = Path(sys.executable).with_name("morphline")
    answer = subprocess.run([script, "--help"], cwd="/", capture_output=True, text=True, check=True)
    assert all(f" {name} " in answer.stdout for name in COMMANDS)
    people, stages = answer.stdout.split("Stages, which `dvc repro` runs")
    assert all(f" {name} " in stages and f" {name} " not in people for name in (*STAGES, "pocket"))
    assert people.index(" morph ") < people.index(" add ")


def test_the_version_is_that_of_the_package() -> None:
    answer = CliRunner().invoke(app, ["--version"])
    assert (answer.exit_code, answer.stdout.strip()) == (0, metadata.version("morphline"))


def test_the_key_of_a_morph_is_no_picture(project: Path) -> None:
    before = contents(project)
    for more in ([], ["--quick"]):
        (problem,) = refused("morph", "hills", *more)
        assert "a morph of params.yaml, not a picture. `dvc repro morph@hills` makes it" in problem
    assert contents(project) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_an_example_that_is_right(name: str) -> None:
    answer = CliRunner().invoke(app, [name, "--help"], terminal_width=200)
    assert answer.exit_code == 0
    words = COMMANDS[name].help
    assert words and len(words.split("Example:")[0].split()) > 5
    examples = re.findall(r"Example: (.+)", words)
    assert examples
    for example in examples:
        program, command, *arguments = shlex.split(example)
        assert (program, command) == ("morphline", name)
        COMMANDS[name].make_context(name, arguments)  # raises for a missing, unknown or wrong argument
    for parameter in COMMANDS[name].params:
        assert parameter.name == "help" or parameter.help, f"{name} {parameter.name} is not explained"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme_or_on_a_page(name: str) -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    told = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert re.search(rf"morphline {name}\b|`{name}[@`]|dvc unfreeze models/dvc.yaml:{name}\b", told)


@pytest.mark.parametrize("name", [name for name, key in STAGES.items() if key])
def test_an_unknown_key_is_reported_with_the_known_ones(project: Path, name: str) -> None:
    before = contents(project)
    (problem,) = refused(name, "hils")
    group = {"frames": "morphs", "evaluate": "morphs", "edit": "edits"}.get(name, "sets")
    there = "hills" if group == "edits" else "dots, hills"
    assert problem == f"params.yaml: {group}: there is no 'hils'. There are: {there}."
    assert contents(project) == before


@pytest.mark.parametrize("name", ["check", *STAGES, "pocket"])
def test_wrong_params_stop_every_command_with_the_same_message(project: Path, name: str) -> None:
    edit(project / "params.yaml", lambda text: with_values(text, {"train.rank": 0}))
    before = contents(project)
    (problem,) = refused(name, *filter(None, [STAGES.get(name)]))
    assert problem == "params.yaml: train.rank: found 0. It should be greater than or equal to 1."
    assert contents(project) == before


@pytest.mark.parametrize(("name", "first"), [
    ("train", "data/prepared/hills: it is not there yet. Run `dvc repro prepare@hills`."),
    ("sample", "data/prepared/hills: it is not there yet. Run `dvc repro prepare@hills`."),
    ("frames", "data/prepared/hills: it is not there yet. Run `dvc repro prepare@hills`."),
    ("evaluate", "data/morphs/hills: it is not there yet. Run `dvc repro morph@hills`."),
    ("report", "reports/metrics/hills.json: it is not there yet. Run `dvc repro evaluate@hills`."),
])  # fmt: skip
def test_a_stage_without_its_inputs_names_the_command_that_makes_them(project: Path, name: str, first: str) -> None:
    assert refused(name, *filter(None, [STAGES[name]])) == [first]
    assert not [folder for folder in ("data/prepared", "data/morphs", "models", "reports") if Path(folder).exists()]


def test_an_unreachable_tracking_server_is_reported_in_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (problem,) = refused("prepare", "hills")
    assert problem.startswith("tracking server http://127.0.0.1:9: cannot be used (")
    assert not Path("data/prepared").exists()


def test_outside_of_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (problem,) = refused("check")
    assert problem == "params.yaml: the file is missing. Run morphline at the top of the repository."


@pytest.mark.parametrize("arguments", [["train"], ["nosuch"], ["train", "a", "b"], ["ui", "--port", "0"]])
def test_a_wrong_command_shows_its_usage(arguments: list[str]) -> None:
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 2 and "Usage: " in answer.stderr and "Traceback" not in answer.stderr


def test_a_training_that_diverges_is_reported_without_a_traceback(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(project / "params.yaml", lambda text: with_values(text, {"train.learning_rate": 1.0, "train.alpha": 4096.0}))
    edit(project / "params.yaml", lambda text: text.replace("train: {steps: 4}", "train: {steps: 200}"))
    assert CliRunner().invoke(app, ["prepare", "dots"]).exit_code == 0
    answer = CliRunner().invoke(app, ["train", "dots"])
    assert answer.exit_code == 1
    message = r"morphline train: .*set: loss \S+ and gradient norm \S+ at step \d+ \(d0.png, .*\); lower train"
    assert re.search(message, answer.stderr)
    assert not Path("models").exists()


@pytest.mark.parametrize("pressed", [True, False])
def test_ctrl_c_is_one_also_where_a_library_makes_another_error_of_it(
    monkeypatch: pytest.MonkeyPatch, project: Path, pressed: bool
) -> None:
    """diffusers does, while it is imported."""

    def run() -> None:
        try:
            if pressed:
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            pass
        raise RuntimeError("Failed to import diffusers")

    monkeypatch.setattr(stage_commands, "import_module", lambda name: SimpleNamespace(run=run))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background
    try:
        answer = CliRunner().invoke(app, ["check"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert answer.exit_code == (130 if pressed else 1)
    assert ("stopped; the same command goes on from here" in answer.stderr) is pressed
    assert isinstance(answer.exception, SystemExit if pressed else RuntimeError)


@pytest.mark.parametrize("broken", [False, True])
def test_garbage_is_left_alone_while_a_stage_is_imported_and_no_longer(
    monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    collecting = []

    def imported(name: str) -> SimpleNamespace:
        collecting.append(gc.isenabled())
        if broken:
            raise ImportError(name)
        return SimpleNamespace(run=lambda: collecting.append(gc.isenabled()))

    monkeypatch.setattr(stage_commands, "import_module", imported)
    with pytest.raises(ImportError) if broken else nullcontext():
        stage_commands.run_stage("check")
    assert collecting == ([False] if broken else [False, True]) and gc.isenabled()


@pytest.mark.parametrize("name", ["json", "tests.warm"])
def test_only_what_was_imported_just_now_is_kept_from_the_collector(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delitem(sys.modules, "tests.warm", raising=False)
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(name))
    with without_collector():
        import_module(name)
    assert frozen == ([] if name == "json" else [name])
