"""Stage `check`: validate everything before any output is made or removed."""

import importlib.util
import sys
from pathlib import Path

from pipeline.base.checking import base_warnings, config_folder, find_base_problems, inpaints
from pipeline.base.device import choose_device, find_dtype_problems
from pipeline.base.schedule import FILE, timesteps_of
from pipeline.base.tokens import caption_length_of
from pipeline.distillation import (
    distillation_warnings,
    find_grid_problems,
    find_objective_problems,
    find_solver_problems,
)
from pipeline.edits import find_edit_problems, find_style_problems
from pipeline.errors import Problem, UserError
from pipeline.inputs import read_json
from pipeline.outputs import atomic_file
from pipeline.params import Params, load_params
from pipeline.pictures.captions import CaptionLength, length_problems
from pipeline.pictures.imagefolder import find_problems
from pipeline.pictures.metadata import captions_of, stream_rows
from pipeline.tracking import check_ran, lacks_scheme

CHECKED = Path("data/checked.txt")
RAW = Path("data/raw")
MEMORY = Path(".work/checked")


def run() -> None:
    """Write a constant file when there are no problems; every prepare depends on it.

    Raises:
        UserError: with every problem of the params, the sets, the morphs and the base.
    """
    params = load_params()
    problems = find_base_problems(params.base) or _model_problems(params)
    caption_length = None if problems else caption_length_of(params.base)
    problems += [] if problems else _fit_problems(params)
    problems += [] if problems else [*find_edit_problems(params, caption_length), *_inpainting_problems(params)]
    problems += _negative_problems(params, caption_length) if caption_length else []
    problems += _device_problems(params)
    for key, spec in params.sets.items():
        problems += find_problems(
            RAW / key,
            max_megapixels=spec.prepare.max_megapixels,
            caption_length=caption_length,
            workers=params.machine.workers,
            memory=MEMORY / f"{key}.txt",
        )
    problems += [*_train_problems(params), *find_objective_problems(params), *find_solver_problems(params)]
    problems += find_style_problems(params)
    problems += _batch_problems(params)
    problems += _lpips_problems(params)
    problems += _keyframe_problems(params)
    problems += [*_tracking_problems(params), *_path_problems()]
    if problems:
        raise UserError(*problems)
    with atomic_file(CHECKED) as path:
        path.write_text("params, sets, morphs and base are in order\n", encoding="utf-8")
    for warning in filter(
        None, [*base_warnings(params.base), *distillation_warnings(params), check_ran(params.tracking)]
    ):
        print(f"Warning: {warning}", file=sys.stderr)


def _model_problems(params: Params) -> list[Problem]:
    """Parts of the base that do not belong together, and a refiner that does not fit it or has nothing to do."""
    from pipeline.base.opening import fit_problems
    from pipeline.editing.transfer import Transfer
    from pipeline.refiner import Asked, find_refiner_problems

    asked = {f"sets.{key}: sample.steps": Asked(spec.sample.steps) for key, spec in params.sets.items()}
    for key, spec in params.edits.items():
        taken = Transfer(spec.edit.steps, spec.edit.strength, solver=spec.edit.solver).steps_taken
        acting = bool(spec.adapters) or (spec.edit.control is not None and spec.edit.control.scale > 0)
        asked[f"edits.{key}: edit.steps"] = Asked(spec.edit.steps, taken, acting)
    return fit_problems(params.base, download=False) or find_refiner_problems(params.refiner, params.base, asked)


def _under_problems(params: Params) -> list[Problem]:
    """Adapters that cannot lie under everything."""
    if not params.base.adapters:
        return []
    from pipeline.adapted_base import find_base_adapter_problems

    return find_base_adapter_problems(params.base)


def _fit_problems(params: Params) -> list[Problem]:
    """What does not go with the base, which is in order itself."""
    found = [*_target_problems(params), *_steps_problems(params), *_size_problems(params), *_under_problems(params)]
    return [*found, *find_grid_problems(params)]


def _size_problems(params: Params) -> list[Problem]:
    """Pictures that do not end where the base's latents do: they would come back smaller."""
    levels = read_json(config_folder(params.base, "vae") / "vae/config.json").get("block_out_channels", [64])
    pixels = 2 ** (len(levels) - 1)
    return [
        Problem(
            f"params.yaml: sets.{key}: prepare.{name}",
            f"{side} pixels, and a latent of the base is {pixels} wide",
            f"Write {max(side // pixels, 1) * pixels}, or another multiple of {pixels}.",
        )
        for key, spec in params.sets.items()
        for name, side in (("width", spec.prepare.width), ("height", spec.prepare.height))
        if side % pixels
    ]


def _steps_problems(params: Params) -> list[Problem]:
    """More steps than the base's schedule has."""
    timesteps = timesteps_of(read_json(config_folder(params.base, "scheduler") / "scheduler" / FILE))
    asked = {f"sets.{key}: sample.steps": spec.sample.steps for key, spec in params.sets.items()}
    asked |= {f"edits.{key}: edit.steps": spec.edit.steps for key, spec in params.edits.items()}
    for key, spec in params.morphs.items():
        asked |= {f"morphs.{key}: morph.{name}": getattr(spec.morph, name) for name in ("steps", "inversion_steps")}
    return [
        Problem(f"params.yaml: {where}", f"{steps} steps", f"The base's schedule has {timesteps}: write no more.")
        for where, steps in asked.items()
        if steps > timesteps
    ]


def _inpainting_problems(params: Params) -> list[Problem]:
    """Morphs by a base that was made to fill holes: it would be told that all is hidden, and find no way to invert."""
    if not params.morphs or not inpaints(params.base):
        return []
    found = f"a base made for inpainting, which makes no morphs ({', '.join(params.morphs)})"
    return [Problem("params.yaml: base.source", found, "Use an ordinary base, or write morphs: {}.")]


def _path_problems() -> list[Problem]:
    """`datasets` takes these characters in the project's path for a pattern, and then finds no pictures."""
    project = Path.cwd()
    if set("[]*?") & set(str(project)):
        return [Problem(str(project), "the path contains one of [ ] * ?", "Move the project to a path without them.")]
    return []


def _device_problems(params: Params) -> list[Problem]:
    try:
        return find_dtype_problems(params.base, choose_device(params.machine.device))
    except UserError as error:
        return list(error.problems)


def _train_problems(params: Params) -> list[Problem]:
    """Values of the `train` sections that cannot work, alone or together."""
    problems = []
    for key, spec in params.sets.items():
        settings, where = spec.train, f"params.yaml: sets.{key}: train"
        for name in ("patience", "target_loss"):
            if getattr(settings, name) is not None and settings.validate_every is None:
                fix = "Set train.validate_every too, or write null."
                problems.append(Problem(f"{where}.{name}", "there are no losses to stop by", fix))
        if settings.hold_out and spec.adapter == "image":
            found = f"{settings.hold_out}, of adapters of one picture each"
            problems.append(Problem(f"{where}.hold_out", found, "Write 0, or `adapter: set`."))
        elif settings.hold_out and (pictures := len(captions_of(RAW / key))) and settings.hold_out >= pictures:
            found = f"{settings.hold_out} of {pictures} pictures, so that none is left to learn from"
            problems.append(Problem(f"{where}.hold_out", found, f"Write at most {pictures - 1}."))
        if settings.text_rate is not None and spec.adapter == "image":
            found = f"{settings.text_rate:g}, of adapters of one picture each"
            problems.append(Problem(f"{where}.text_rate", found, "Write null, or `adapter: set`."))
        if settings.optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
            problems.append(
                Problem(
                    f"{where}.optimizer",
                    "adamw8bit needs the package bitsandbytes, which is not installed",
                    "Run `pip install bitsandbytes`, or write adamw.",
                )
            )
        if settings.warmup >= settings.steps > 1:
            found = f"{settings.warmup} steps of warm-up in a training of {settings.steps}"
            problems.append(Problem(f"{where}.warmup", found, "Write fewer, or more train.steps."))
    return problems


def _batch_problems(params: Params) -> list[Problem]:
    """A `machine.batch` in which not even one frame or sample fits."""
    least = {"sample": max([1 if spec.sample.guidance == 1 else 2 for spec in params.sets.values()], default=1)}
    least |= {f"morphs.{key}": spec.morph.least_batch for key, spec in params.morphs.items()}
    least |= {f"edits.{key}": 1 if spec.edit.guidance == 1 else 2 for key, spec in params.edits.items()}
    batch = params.machine.batch
    return [
        Problem("params.yaml: machine.batch", f"{batch} is too few for {where}", f"Write at least {needed}, or null.")
        for where, needed in least.items()
        if batch is not None and batch < needed
    ]


def _lpips_problems(params: Params) -> list[Problem]:
    """Weights for LPIPS that cannot be used. None at all are fine: the distance is optional."""
    if params.evaluate.lpips is None:
        if params.evaluate.lpips_digest is None:
            return []
        return [Problem("params.yaml: evaluate.lpips_digest", "there is no evaluate.lpips to pin", "Write null.")]
    from pipeline.evaluation.lpips import find_lpips_problems

    return find_lpips_problems(Path(params.evaluate.lpips), params.evaluate.lpips_digest)


def _target_problems(params: Params) -> list[Problem]:
    """Layers that the base does not have; looked up in its config, without its weights."""
    by_name = [spec.train for spec in params.sets.values() if not isinstance(spec.train.targets, str)]
    if not by_name:
        return []
    from pipeline.base.opening import denoiser_without_weights
    from pipeline.training.pack import layers_of

    denoiser = denoiser_without_weights(params.base)
    problems: dict[str, Problem] = {}
    for settings in by_name:
        try:
            layers_of(denoiser, settings.targets, settings.rank)
        except UserError as error:
            problems |= {str(problem): problem for problem in error.problems}
    return list(problems.values())


def _negative_problems(params: Params, caption_length: CaptionLength) -> list[Problem]:
    """Captions that guidance leads a morph away from, of which the base would not read all."""
    negatives = {
        f"params.yaml: morphs.{key}: morph.negative": spec.morph.negative for key, spec in params.morphs.items()
    }
    return [one for where, text in negatives.items() for one in length_problems(where, text, caption_length)]


def _tracking_problems(params: Params) -> list[Problem]:
    uri = params.tracking.uri
    if uri is None or not lacks_scheme(uri):
        return []
    return [Problem("params.yaml: tracking.uri", f"{uri!r} does not say how to reach it", f"Write http://{uri}.")]


def _keyframe_problems(params: Params) -> list[Problem]:
    problems = []
    for key, morph in params.morphs.items():
        try:
            names = [row.file_name for row in stream_rows(RAW / morph.set)]
        except UserError:
            continue  # the set's own problems are reported already
        for index, keyframe in enumerate(morph.keyframes):
            if keyframe not in names:
                some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
                problems.append(
                    Problem(
                        f"params.yaml: morphs.{key}.keyframes.{index}",
                        f"{keyframe!r} is not in the set {morph.set}",
                        f"Choose from: {some}.",
                    )
                )
    return problems
