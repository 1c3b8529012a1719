"""What the studio knows of the project that it serves, and where it keeps its own files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.params import Params

STUDIO = Path(".work/studio")


@dataclass(frozen=True)
class Project:
    """The project in the working folder.

    load: reads params.yaml anew, raising UserError for what is wrong in it. morphline: how the command line is called.
    run_page: the path of a stage's newest run on MLflow's dashboard, such as `/#/experiments/1/runs/ab12`; None where
    there is none. environment: what the jobs have in theirs besides.
    """

    load: Callable[[], Params]
    morphline: Sequence[str]
    run_page: Callable[[str], str | None] = field(default=lambda stage: None)
    environment: Mapping[str, str] = field(default_factory=dict)
