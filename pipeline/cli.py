"""The command line: parse, import the stage or command, call it. Nothing heavy is imported before a command runs."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline import adapter_commands, stage_commands, worker_commands
from pipeline.commands.endings import ending_well
from pipeline.importing import without_collector
from pipeline.options import (
    Adapters,
    Captions,
    Focuses,
    Force,
    Fps,
    Frames,
    Hold,
    Key,
    MorphKey,
    OneOrEach,
    Out,
    SetKey,
    Settings,
    Size,
    Steps,
    Style,
)

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
LOCAL = "127.0.0.1"
FOR_PEOPLE = "For you"
STAGES = "Stages, which `dvc repro` runs when they are needed"
app.add_typer(tracking, name="track", rich_help_panel=FOR_PEOPLE)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(version("morphline"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What applies to no command."""


def command(function: Callable[..., None], group: typer.Typer = app, panel: str = FOR_PEOPLE) -> Callable[..., None]:
    """Register a command, listed in `panel`."""
    name = ("" if group is app else "track ") + function.__name__.replace("_", "-")
    return group.command(rich_help_panel=panel)(ending_well(name, function))


@command
def morph(
    pictures: Annotated[list[Path], typer.Argument(help="Two or more pictures, in the order of the morph.")],
    caption: Captions = None,
    out: Out = Path("morph.mp4"),
    frames: Frames = None,
    steps: Steps = None,
    fps: Fps = None,
    hold: Hold = None,
    size: Size = None,
    key: Key = None,
    focus: Focuses = None,
    settings: Settings = None,
    style: Style = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure it, too, beside its baselines.")] = False,
    preview: Annotated[bool, typer.Option("--preview", help="First coarse frames, into .work/previews.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Without training, tracking or traces: seconds.")] = False,
    force: Force = False,
) -> None:
    """Turn your pictures into a clip: adds them as a set and a morph, runs the pipeline for it, writes the clip.

    Example: morphline morph a.jpg b.jpg --caption "a beach by day" --caption "a beach at night" --out beach.mp4

    Example: morphline morph a.jpg b.jpg --key trip --focus 0.3,0.5 --focus "" --set morph.loop=true

    Example: morphline morph a.jpg b.jpg --quick --frames 60 --fps 24 --out beach.webp
    """
    if quick and (key or measure or preview or style):
        raise typer.BadParameter(
            "--quick adds nothing to the project: no --key, --measure, --preview or --style goes with it."
        )
    with without_collector():
        from pipeline.commands import add

        if quick:  # one of the two: both would take seconds more
            from pipeline.commands import quick as untrained
        else:
            from pipeline.commands import morph

    extras = add.extras_of(focus, settings, style)
    made_by = untrained.run if quick else partial(morph.run, key=key, measure=measure, preview=preview)
    make = partial(made_by, extras=extras, frames=frames, steps=steps)
    print(make(pictures, caption or [], out, fps=fps, hold=hold, size=size, force=force))


@command
def preview(key: MorphKey) -> None:
    """Write a first look at a morph to .work/previews, by the base alone: coarse, in seconds, without any training.

    Example: morphline preview alps
    """
    with without_collector():
        from pipeline.commands import preview

    print(preview.run(key))


@command
def add(
    key: Annotated[str, typer.Argument(help="Key of the new set and morph: lower-case letters, digits, hyphens.")],
    pictures: Annotated[list[Path], typer.Argument(help="Two or more pictures, in the order of the morph.")],
    caption: Captions = None,
    focus: Focuses = None,
    settings: Settings = None,
    adapter: OneOrEach = "image",
) -> None:
    """Add your own pictures: copies them to data/raw/KEY, writes metadata.jsonl, and adds set and morph to params.yaml.

    Example: morphline add holiday a.jpg b.jpg --caption "a beach by day" --caption "a beach at night"
    """
    from pipeline.commands import add

    if adapter not in ("image", "set"):
        raise typer.BadParameter("--adapter is image or set.")
    add.run(key, pictures, caption or [], add.extras_of(focus, settings), "set" if adapter == "set" else "image")
    if adapter == "image":
        print(f"`dvc repro morph@{key}` makes the clip: data/morphs/{key}/morph.mp4")


@command
def clip(key: MorphKey, out: Out, fps: Fps = None, hold: Hold = None, size: Size = None, force: Force = False) -> None:
    """Write a finished morph as another clip: another format, frame rate or size, without computing it again.

    Example: morphline clip alps --out alps.gif --fps 12 --size 512
    """
    with without_collector():
        from pipeline.commands import clip

    print(clip.run(key, out, fps=fps, hold=hold, size=size, force=force))


@command
def restyle(
    key: SetKey,
    adapters: Adapters,
    name: Annotated[str | None, typer.Option("--key", help="Key of the edit; default: from the sets' names.")] = None,
    settings: Settings = None,
) -> None:
    """Change the pictures of a set by other sets' adapters: adds an edit, and runs the pipeline for it.

    Example: morphline restyle alps woodcut:0.8 --set edit.strength=0.6
    """
    with without_collector():
        from pipeline.commands import restyle

    print(restyle.run(key, adapters, name, settings or []))


@command
def ui(port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 5000) -> None:
    """Open the MLflow dashboard of all runs of this project in a local server.

    Example: morphline ui --port 5001
    """
    from pipeline.commands import ui

    raise typer.Exit(ui.run(port))


@command
def studio(
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 8300,
    host: Annotated[str, typer.Option(help="Address to serve on; by default only this machine can reach it.")] = LOCAL,
    name: Annotated[
        list[str] | None, typer.Option(help="Host name of a proxy before it; as often as there are names.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in a browser.")] = True,
) -> None:
    """Open the studio: make morphs, watch them being made, see and compare them, in a browser.

    Example: morphline studio --port 8301 --no-browser
    """
    from pipeline.commands import studio

    raise typer.Exit(studio.run(port, host, browser, name or ()))


@partial(command, group=tracking, panel="Commands")
def sync() -> None:
    """Send to the tracking server whatever it lacks of the project's runs. Safe at any time, and twice.

    Exit code 0: it has everything but what running stages will send themselves; 1: something is left, and why.

    Example: morphline track sync
    """
    from pipeline.commands import sync

    raise typer.Exit(0 if sync.run() else 1)


@command
def clean(
    days: Annotated[float, typer.Option(help="Only what nothing has used for so many days.", min=0)] = 30,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it, and say what that freed.")] = False,
) -> None:
    """Say what the work files in .work take that nothing has used for a while, and delete it if asked.

    No result depends on them: what is needed again is made again.

    Example: morphline clean --days 7 --delete
    """
    from pipeline.commands import clean
    from pipeline.params import load_params

    if not Path("params.yaml").exists():
        load_params()  # says where to run it
    print(*clean.run(days, delete), sep="\n")


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
    from pipeline.ci import report as ci_report

    ci_report.run(base, out, pictures, url)
    print(out)


for one in (*adapter_commands.COMMANDS, *worker_commands.COMMANDS):
    command(one)
command(stage_commands.check)
for stage in stage_commands.STAGES:
    command(stage, panel=STAGES)
