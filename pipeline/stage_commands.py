"""The stages as commands: what `dvc repro` calls, and `check`, which a person calls too."""

from importlib import import_module

from pipeline.importing import without_collector
from pipeline.options import EditKey, MorphKey, SetKey


def run_stage(name: str, *key: str) -> None:
    """Import a stage and run it."""
    with without_collector():
        stage = import_module(f"pipeline.stages.{name}")
    stage.run(*key)


def run_shared(name: str, command: str, key: str) -> None:
    """The same of a stage that several processes may share, whose command is `morphline <command> <key>`."""
    with without_collector():
        shared = import_module("pipeline.stages.shared")
    shared.launch([command, key])
    run_stage(name, key)


def check() -> None:
    """Validate params.yaml, every raw set, every morph's keyframes and the base; list every problem at once.

    Example: morphline check
    """
    run_stage("check")


def prepare(key: SetKey) -> None:
    """Crop and resize a set's pictures into data/prepared/SET, with a ledger of what was done.

    Example: morphline prepare alps
    """
    run_stage("prepare", key)


def train(key: SetKey) -> None:
    """Train a set's LoRA adapters into models/adapters/SET. Resumes a killed training.

    Example: morphline train alps
    """
    run_shared("train", "train", key)


def sample(key: SetKey) -> None:
    """Generate a grid of pictures from a set's adapters, over seeds and adapter weights.

    Example: morphline sample woodcut
    """
    run_shared("sample", "sample", key)


def frames(key: MorphKey) -> None:
    """Make a morph's frames and clips in data/morphs/MORPH: the stage morph@MORPH.

    Example: morphline frames alps
    """
    run_shared("morph", "frames", key)


def evaluate(key: MorphKey) -> None:
    """Measure a morph's fidelity and smoothness beside its baselines.

    Example: morphline evaluate alps
    """
    run_shared("evaluate", "evaluate", key)


def styles() -> None:
    """Note in data/styles what adapters and pictures the edits use: what DVC reruns them by.

    Example: morphline styles
    """
    run_stage("styles")


def edit(key: EditKey) -> None:
    """Change the pictures of a set by other sets' adapters, a caption or edges, into data/edits/EDIT.

    Example: morphline edit alps-woodcut
    """
    run_shared("edit", "edit", key)


def report() -> None:
    """Write reports/index.html, one page with all pictures, curves and metrics.

    Example: morphline report
    """
    run_stage("report")


def pocket() -> None:
    """Paint landscapes and train the pocket base from them: hours on a CPU. `dvc repro` never does this by itself.

    Example: morphline pocket
    """
    run_stage("pocket")


def controlnet() -> None:
    """Train the ControlNet for edges of the pocket, in twenty minutes on a CPU. `dvc repro` never does it.

    Example: morphline controlnet
    """
    run_stage("controlnet")


STAGES = (prepare, train, sample, frames, evaluate, styles, edit, report, pocket, controlnet)
