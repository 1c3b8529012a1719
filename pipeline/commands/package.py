"""`morphline package`: a set's adapters or a morph's recipe as a model that MLflow serves (docs/serving.md)."""

import os
from pathlib import Path

from pipeline.commands.places import require_not_own, require_only
from pipeline.errors import Problem, UserError
from pipeline.params import Params, load_params

OF_A_MODEL = ("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "data")
"""What MLflow writes."""


def run(name: str, out: Path, force: bool) -> Path:
    """Write the model to the folder `out`, and return that.

    Raises:
        UserError: for a name that is none, results that are not made yet, and a folder that is there already, unless
            `force` is true and it holds a model that was packaged before, and nothing else.
    """
    params = load_params()
    stage = stage_of(params, name)
    require_not_own(out)
    if os.path.lexists(out):
        if not force:
            raise UserError(Problem(str(out), "it exists already", "Use another folder, or --force."))
        require_only(out, OF_A_MODEL, "MLmodel", "model that was packaged before")
    from pipeline.serving.package import contents_of
    from pipeline.tracking.packages import write_model

    write_model(contents_of(params, stage), out)
    return out


def stage_of(params: Params, name: str) -> str:
    """`train@SET` or `morph@MORPH` of a name, which may leave out the stage where only one has it.

    Raises:
        UserError: for a name that none has, or both have.
    """
    stage, at, key = name.rpartition("@")
    groups = {"train": set[str](params.sets), "morph": set[str](params.morphs)}
    having = [one for one, keys in groups.items() if key in keys and (not at or stage == one)]
    if len(having) == 1:
        return f"{having[0]}@{key}"
    if having:
        fix = f"Write train@{key} for the set's adapters, or morph@{key} for the morph."
        raise UserError(Problem(name, "both a set and a morph are named so", fix))
    sets, morphs = (", ".join(sorted(keys)) or "none" for keys in groups.values())
    raise UserError(Problem(name, "there is no such set or morph", f"There are the sets {sets}; the morphs {morphs}."))
