"""The command line: parse, import the stage, call it. Nothing heavy is imported before a command runs."""

import os
import sys
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import UserError

app = typer.Typer(
    help="Turn a few pictures into a smooth, tracked, reproducible morph. The whole pipeline runs with `dvc repro`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tracking = typer.Typer(
    help="Look after the MLflow runs, which `morphline ui` shows.\n\nExample: morphline track sync",
    no_args_is_help=True,
)
app.add_typer(tracking, name="track")

SetKey = Annotated[str, typer.Argument(metavar="SET", help="A key under `sets` in params.yaml.")]
MorphKey = Annotated[str, typer.Argument(metavar="MORPH", help="A key under `morphs` in params.yaml.")]
Out = Annotated[Path, typer.Option(help="The clip: .mp4, .webp or .gif; with no suffix, a folder of PNGs.")]
Fps = Annotated[float | None, typer.Option(help="Frames a second, if not as in params.yaml.")]
Hold = Annotated[float | None, typer.Option(help="Seconds on each keyframe, if not as in params.yaml.")]
Size = Annotated[int | None, typer.Option(help="Longer side in pixels, if not the frames' own.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a clip that is there already.")]


FIRST_SAYS_IT = 10.0
"""Seconds that the other processes of a training leave the first one to tell a mistake of all."""


def command(function: Callable[..., None], group: typer.Typer = app) -> Callable[..., None]:
    """Register a command. A user's mistake becomes its message and exit code 1; Ctrl-C becomes exit code 130."""

    name = ("" if group is app else "track ") + function.__name__.replace("_", "-")

    @wraps(function)
    def told(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except UserError as error:
            if os.environ.get("RANK", "0") != "0":
                # The first of several processes says it for all, and its end ends them; unless it has no such problem.
                time.sleep(FIRST_SAYS_IT)
            print(f"morphline {name}: {len(error.problems)} problem(s)", file=sys.stderr)
            for problem in error.problems:
                print(f"  {problem}", file=sys.stderr)
            raise typer.Exit(1) from None
        except FloatingPointError as error:
            print(f"morphline {name}: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt as stopped:
            said = str(stopped) or "stopped"
            print(f"morphline {name}: {said}; `dvc repro` goes on from here", file=sys.stderr)
            raise typer.Exit(getattr(stopped, "exit_code", 130)) from None

    return group.command()(told)


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
    """Train a set's LoRA adapters into models/adapters/SET. Goes on where a killed training was.

    Example: morphline train alps
    """
    from pipeline.stages import train

    train.run(key)


@command
def sample(key: SetKey) -> None:
    """Paint a grid of pictures from a set's adapters, over seeds and adapter weights.

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
    """Make a morph's frames and clips in data/morphs/MORPH; or, from pictures, run all it takes and write the clip.

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
    """Write a finished morph as another clip: another kind, pace or size; nothing is made anew.

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
    """Write reports/index.html, one page with everything to look at.

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
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there already.")] = False,
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
    pictures: Annotated[Path, typer.Option(help="Folder for the strips it shows.")] = Path("report/pictures"),
    url: Annotated[str | None, typer.Option(help="Where readers find that folder; else only files are named.")] = None,
) -> None:
    """Say what a change did, after `dvc repro`: stages, params, figures and strips, as Markdown for a pull request.

    Example: morphline ci-report --base main --out report/report.md
    """
    from pipeline.report import ci as ci_report

    ci_report.run(base, out, pictures, url)
    print(out)


@partial(command, group=tracking)
def sync() -> None:
    """Bring to the tracking server whatever it lacks of the project's runs. Safe at any time, and twice.

    Exit code 0: it has everything but what stages at work will bring themselves; 1: something is left, and why.

    Example: morphline track sync
    """
    from pipeline.params import load_params
    from pipeline.tracking import redacted, server_uri, sync

    params = load_params().tracking
    failed = 0
    for outcome in sync(params):
        print(f"  {outcome}")
        failed += outcome.failed
    if not failed:
        print(f"{redacted(server_uri(params) or '')} has all runs of this project")
    raise typer.Exit(1 if failed else 0)


@command
def ui(port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 5000) -> None:
    """Open the MLflow dashboard of all runs of this project in a local server.

    Example: morphline ui --port 5001
    """
    import subprocess

    from pipeline.params import load_params
    from pipeline.tracking import dashboard_command, redacted, runs_page, server_uri

    params = load_params().tracking
    command, folder = dashboard_command(params, port)
    print(f"Open http://127.0.0.1:{port}{runs_page(params)}", flush=True)
    if uri := server_uri(params):
        print(f"The runs of all who share it: {redacted(uri)}", flush=True)
    try:
        raise typer.Exit(subprocess.call(command, cwd=folder))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
