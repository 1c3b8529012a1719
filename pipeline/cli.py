"""The command line: parse, import the stage or command, call it. Nothing heavy is imported before a command runs."""

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import UserError

# Before torch is imported: threads that wait for each other give way soon. By default they spin, so that two processes
# on two cores take a hundred times as long as one after the other.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

app = typer.Typer(
    help="Turn a few pictures into a smooth, tracked, reproducible morph. The whole pipeline runs with `dvc repro`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tracking = typer.Typer(
    help="Manage the MLflow runs, which `morphline ui` shows.\n\nExample: morphline track sync",
    no_args_is_help=True,
)
app.add_typer(tracking, name="track")

SetKey = Annotated[str, typer.Argument(metavar="SET", help="A key under `sets` in params.yaml.")]
MorphKey = Annotated[str, typer.Argument(metavar="MORPH", help="A key under `morphs` in params.yaml.")]
Out = Annotated[Path, typer.Option(help="The clip: .mp4, .webp or .gif; without a suffix, a folder of PNGs.")]
Fps = Annotated[float | None, typer.Option(help="Frames a second; default: as in params.yaml.")]
Hold = Annotated[float | None, typer.Option(help="Seconds on each keyframe; default: as in params.yaml.")]
Size = Annotated[int | None, typer.Option(help="Longer side in pixels; default: that of the frames.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing clip.")]

REPORT_DELAY = 60.0
"""Seconds that other processes of a stage wait for the first one to report a mistake that all of them make."""


def command(function: Callable[..., None], group: typer.Typer = app) -> Callable[..., None]:
    """Register a command. A user's mistake becomes its message and exit code 1; Ctrl-C becomes exit code 130."""

    name = ("" if group is app else "track ") + function.__name__.replace("_", "-")

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except UserError as error:
            if os.environ.get("RANK", "0") != "0":
                # The first of several processes reports for all, and its end ends them; unless it has no such problem.
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                time.sleep(REPORT_DELAY)
            print(f"morphline {name}: {len(error.problems)} problem(s)", file=sys.stderr)
            for line in str(error).splitlines():
                print(f"  {line}", file=sys.stderr)
            raise typer.Exit(1) from None
        except FloatingPointError as error:
            print(f"morphline {name}: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt as stopped:
            reason = str(stopped) or "stopped"
            if os.environ.get("RANK", "0") == "0":  # one of several processes speaks for all
                print(f"morphline {name}: {reason}; `dvc repro` goes on from here", file=sys.stderr)
            raise typer.Exit(getattr(stopped, "exit_code", 130)) from None

    return group.command()(run)


@command
def check() -> None:
    """Validate params.yaml, every raw set, every morph's keyframes and the base; list every problem at once.

    Example: morphline check
    """
    from pipeline.stages import check

    check.run()


@command
def prepare(key: SetKey) -> None:
    """Crop and resize a set's pictures into data/prepared/SET, with a ledger of what was done.

    Example: morphline prepare alps
    """
    from pipeline.stages import prepare

    prepare.run(key)


@command
def train(key: SetKey) -> None:
    """Train a set's LoRA adapters into models/adapters/SET. Resumes a killed training.

    Example: morphline train alps
    """
    from pipeline.stages import train

    train.run(key)


@command
def sample(key: SetKey) -> None:
    """Generate a grid of pictures from a set's adapters, over seeds and adapter weights.

    Example: morphline sample woodcut
    """
    from pipeline.stages import sample

    sample.run(key)


@command
def morph(
    what: Annotated[list[str], typer.Argument(metavar="MORPH | PICTURE PICTURE...", help="A key, or your pictures.")],
    caption: Annotated[list[str] | None, typer.Option(help="What a picture shows; once for each, in order.")] = None,
    out: Out = Path("morph.mp4"),
    fps: Fps = None,
    hold: Hold = None,
    size: Size = None,
    force: Force = False,
) -> None:
    """Make a morph's frames and clips in data/morphs/MORPH; or, from pictures, run the pipeline and write the clip.

    Example: morphline morph alps

    Example: morphline morph a.jpg b.jpg --caption "a beach by day" --caption "a beach at night" --out beach.mp4
    """
    if len(what) == 1 and not caption:
        from pipeline.stages import morph

        morph.run(what[0])
        return
    from pipeline.commands import quick

    print(quick.run([Path(name) for name in what], caption or [], out, fps=fps, hold=hold, size=size, force=force))


@command
def clip(key: MorphKey, out: Out, fps: Fps = None, hold: Hold = None, size: Size = None, force: Force = False) -> None:
    """Write a finished morph as another clip: another format, frame rate or size, without computing it again.

    Example: morphline clip alps --out alps.gif --fps 12 --size 512
    """
    from pipeline.commands import clip

    print(clip.run(key, out, fps=fps, hold=hold, size=size, force=force))


@command
def evaluate(key: MorphKey) -> None:
    """Measure a morph's fidelity and smoothness beside its baselines.

    Example: morphline evaluate alps
    """
    from pipeline.stages import evaluate

    evaluate.run(key)


@command
def report() -> None:
    """Write reports/index.html, one page with all pictures, curves and metrics.

    Example: morphline report
    """
    from pipeline.stages import report

    report.run()


@command
def pocket() -> None:
    """Paint landscapes and train the pocket base from them: hours on a CPU. `dvc repro` never does this by itself.

    Example: morphline pocket
    """
    from pipeline.stages import pocket

    pocket.run()


@command
def add(
    key: Annotated[str, typer.Argument(help="Key of the new set and morph: lower-case letters, digits, hyphens.")],
    pictures: Annotated[list[Path], typer.Argument(help="Two or more pictures, in the order of the morph.")],
    caption: Annotated[list[str], typer.Option(help="What a picture shows; once for each picture, in order.")],
) -> None:
    """Add your own pictures: copies them to data/raw/KEY, writes metadata.jsonl, and adds set and morph to params.yaml.

    Example: morphline add holiday a.jpg b.jpg --caption "a beach by day" --caption "a beach at night"
    """
    from pipeline.commands import add

    add.run(key, pictures, caption)


@command
def export(
    key: SetKey,
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("exported"),
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> None:
    """Write a set's adapters in kohya's key format, for ComfyUI and A1111.

    Example: morphline export alps --out ~/ComfyUI/models/loras
    """
    from pipeline.commands import export

    for path in export.run(key, out, force):
        print(path)


@command
def ci_report(
    base: Annotated[str, typer.Option(help="The Git revision to compare with.")],
    out: Annotated[Path, typer.Option(help="The report, Markdown.")] = Path("report/report.md"),
    pictures: Annotated[Path, typer.Option(help="Folder for its pictures.")] = Path("report/pictures"),
    url: Annotated[str | None, typer.Option(help="URL of that folder for readers; default: only file names.")] = None,
) -> None:
    """Report what a change did, after `dvc repro`: stages, params, metrics and strips, as Markdown for a pull request.

    Example: morphline ci-report --base main --out report/report.md
    """
    from pipeline.report import ci as ci_report

    ci_report.run(base, out, pictures, url)
    print(out)


@partial(command, group=tracking)
def sync() -> None:
    """Send to the tracking server whatever it lacks of the project's runs. Safe at any time, and twice.

    Exit code 0: it has everything but what running stages will send themselves; 1: something is left, and why.

    Example: morphline track sync
    """
    from pipeline.commands import sync

    raise typer.Exit(0 if sync.run() else 1)


@command
def ui(port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 5000) -> None:
    """Open the MLflow dashboard of all runs of this project in a local server.

    Example: morphline ui --port 5001
    """
    from pipeline.commands import ui

    raise typer.Exit(ui.run(port))
