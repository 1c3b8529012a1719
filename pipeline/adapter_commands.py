"""What becomes of trained adapters, as commands of the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pipeline.importing import without_collector
from pipeline.options import Adapters, Force, Made, SetKey


def export(
    key: SetKey,
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("exported"),
    force: Force = False,
) -> None:
    """Write a set's adapters in kohya's key format, for ComfyUI and A1111.

    Example: morphline export alps --out ~/ComfyUI/models/loras
    """
    with without_collector():
        from pipeline.commands import export

    for path in export.run(key, out, force):
        print(path)


def mix(
    adapters: Adapters,
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    rank: Annotated[int | None, typer.Option(help="Nearest of this rank; else exact.", min=1, max=1024)] = None,
    force: Force = False,
) -> None:
    """Write the weighted sum of adapters of one base as one adapter.

    Example: morphline mix woodcut:0.6 alps/dawn:0.4 --out both.safetensors
    """
    with without_collector():
        from pipeline.commands import mix

    print(mix.run(adapters, out, rank, force))


def fuse(
    adapters: Adapters,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    force: Force = False,
) -> None:
    """Write the base with adapters added to its weights, as a diffusers folder that `base.source` can name.

    Example: morphline fuse woodcut:0.8 --out models/woodcut-base
    """
    with without_collector():
        from pipeline.commands import fuse

    print(fuse.run(adapters, out, force))


def package(
    name: Made,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    force: Force = False,
) -> None:
    """Write a set's adapters or a morph's recipe as a model for `mlflow models serve`: morphs and pictures over HTTP.

    Example: morphline package woodcut --out served/woodcut

    Example: morphline package morph@alps --out served/alps
    """
    from pipeline.commands import package

    print(package.run(name, out, force))


def promote(
    name: Made,
    to: Annotated[int | None, typer.Option(help="Give the alias to this version, whatever its figures.", min=1)] = None,
) -> None:
    """Make a set's adapters or a morph's recipe the champion of its registered model, if its figures are better.

    Exit code 0: it is the champion; 1: it is not, and why. To go back: --to with an earlier version.

    Example: morphline promote woodcut

    Example: morphline promote morph@alps --to 3
    """
    from pipeline.commands import promote

    raise typer.Exit(0 if promote.run(name, to) else 1)


COMMANDS: tuple[Callable[..., None], ...] = (
    export,
    mix,
    fuse,
    package,
    promote,
)
