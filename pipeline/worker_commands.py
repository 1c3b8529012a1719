"""Stages on many workers, as commands of the command line."""

from collections.abc import Callable
from typing import Annotated

import typer

from pipeline.options import Engine, Remote, Scratch, StageKeys, StageName


def work(stage: StageName, keys: StageKeys = None, remote: Remote = None, scratch: Scratch = None) -> None:
    """Run a stage for some keys in a clone of its own, as one of many workers; `dvc repro` here collects the results.

    The clone has the state that the project is in, edits included. Exits with the stage's code.

    Example: morphline work train alps woodcut
    """
    from pipeline.commands import work

    raise typer.Exit(work.run(stage, keys or [], remote, scratch))


def fan_out(
    stage: StageName,
    keys: StageKeys = None,
    listed: Annotated[bool, typer.Option("--list", help="Print the keys that need work, one a line.")] = False,
    on: Annotated[Engine, typer.Option(help="What starts workers: this machine, a Ray cluster, or SLURM.")] = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            "-j", "--workers", help="At once. Here: one a GPU, or one; on Ray and SLURM as many as keys.", min=1
        ),
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="For each worker; default: one where there are any.", min=0)] = None,
    keys_each: Annotated[int, typer.Option(help="Keys that a worker takes, one after the other.", min=1)] = 1,
    retries: Annotated[int, typer.Option(help="New tries of a key whose worker was killed.", min=0)] = 2,
    remote: Remote = None,
    scratch: Scratch = None,
) -> None:
    """Share out the keys of a stage that need work among workers (`morphline work`), on one machine or on many.

    Exit code 0: all is made, and `dvc repro` takes it; with SLURM: it is queued.

    Example: morphline fan-out train -j 4

    Example: morphline fan-out train --on slurm -j 16 --gpus 1
    """
    from pipeline.commands import fan_out

    if listed:
        for key in fan_out.need_work(stage, keys or []):
            print(key)
        return
    made = fan_out.run(
        stage, keys or [], on, workers=workers, gpus=gpus, each=keys_each, retries=retries, remote=remote, place=scratch
    )
    raise typer.Exit(0 if made else 1)


COMMANDS: tuple[Callable[..., None], ...] = (
    work,
    fan_out,
)
