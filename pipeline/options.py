"""What the command line takes: the arguments and options that several commands share, with their help and limits."""

from pathlib import Path
from typing import Annotated, Literal

import typer

SetKey = Annotated[str, typer.Argument(metavar="SET", help="A key under `sets` in params.yaml.")]
MorphKey = Annotated[str, typer.Argument(metavar="MORPH", help="A key under `morphs` in params.yaml.")]
EditKey = Annotated[str, typer.Argument(metavar="EDIT", help="A key under `edits` in params.yaml.")]
Made = Annotated[
    str, typer.Argument(metavar="SET|MORPH", help="A set or morph; train@KEY or morph@KEY where both are named so.")
]
Out = Annotated[Path, typer.Option(help="The clip: .mp4, .webp or .gif; without a suffix, a folder of PNGs.")]
Fps = Annotated[float | None, typer.Option(help="Frames a second; default: as in params.yaml.")]
Hold = Annotated[float | None, typer.Option(help="Seconds on each keyframe; default: as in params.yaml.")]
Size = Annotated[int | None, typer.Option(help="Longer side in pixels; default: that of the frames.")]
Adapters = Annotated[
    list[str], typer.Argument(help="A set's key, SET/PICTURE or a .safetensors file; :WEIGHT after it, else 1.")
]
Captions = Annotated[list[str] | None, typer.Option(help="What a picture shows: for each in order, for all, or none.")]
Frames = Annotated[
    int | None,
    typer.Option(help="From a picture to the next; else as in params.yaml; of two, 31 or more.", min=3, max=10_000),
]
Steps = Annotated[int | None, typer.Option(help="That make a frame; else as in params.yaml.", min=2, max=1000)]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there already.")]
StageName = Annotated[str, typer.Argument(metavar="STAGE", help="A stage of dvc.yaml, such as train.")]
StageKeys = Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="Default: all that need work.")]
Remote = Annotated[
    str | None, typer.Option(help="Fetch from this DVC remote and push to it, instead of sharing the cache.")
]
Scratch = Annotated[Path | None, typer.Option(help="Folder for clones; default: the one for temporary files.")]
Engine = Literal["local", "ray", "slurm"]
Style = Annotated[str | None, typer.Option(help="A set with one adapter for all, in whose style the morph is.")]
OneOrEach = Annotated[str, typer.Option(help="image: one for each picture, and a morph; set: one for all, a style.")]
Key = Annotated[str | None, typer.Option(help="Key of the set and the morph; default: from the pictures' names.")]
Focuses = Annotated[
    list[str] | None,
    typer.Option("--focus", metavar="X,Y", help="What the crop centres on, 0 to 1 each: for each picture, or for all."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-S", metavar="SECTION.NAME=VALUE", help="A value of its own, as params.yaml has it."),
]
