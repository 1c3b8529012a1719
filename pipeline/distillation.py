"""Whether adapters can be trained for what the params ask of them, and samples and edits be made by their solver."""

from pathlib import Path

from pipeline.base.checking import config_folder
from pipeline.base.schedule import FILE, timesteps_of
from pipeline.errors import Problem
from pipeline.inputs import read_json
from pipeline.params import Params
from pipeline.sampling.consistency import GRID, MOST_STEPS
from pipeline.sections import EditSection, SampleSection


def find_objective_problems(params: Params) -> list[Problem]:
    """Objectives that do not go with the rest of their `train` section."""
    problems = []
    for key, spec in params.sets.items():
        settings, where = spec.train, f"params.yaml: sets.{key}: train"
        if settings.objective == "denoise":
            continue
        if spec.adapter == "image":
            found = f"{settings.objective}, of adapters of one picture each"
            problems.append(Problem(f"{where}.objective", found, "Write `adapter: set`, or denoise."))
        if settings.objective == "consistency" and settings.text_rate is not None:
            found = f"{settings.text_rate:g}, and the teacher of consistency reads captions as the base does"
            problems.append(Problem(f"{where}.text_rate", found, "Write null."))
        if settings.objective == "consistency" and settings.min_snr_gamma is not None:
            found = f"{settings.min_snr_gamma:g}, and consistency weighs all timesteps alike"
            problems.append(Problem(f"{where}.min_snr_gamma", found, "Write null."))
        if settings.objective == "consistency" and settings.guidance_from > settings.guidance_to:
            found = f"{settings.guidance_from:g} lies above guidance_to"
            problems.append(Problem(f"{where}.guidance_from", found, "Write at most `guidance_to`."))
        for name in ("patience", "target_loss"):
            if settings.objective == "consistency" and getattr(settings, name) is not None:
                found = "the error of consistency at fixed noise rises before it falls"
                problems.append(Problem(f"{where}.{name}", found, "Write null."))
        if settings.objective == "smooth" and settings.gradient_checkpointing:
            found = "smooth takes second derivatives, which checkpointing does not carry"
            problems.append(Problem(f"{where}.gradient_checkpointing", found, "Write false."))
    return problems


def find_solver_problems(params: Params) -> list[Problem]:
    """Samples and edits with values that their solver cannot take."""
    problems = []
    for key, spec in params.sets.items():
        problems += _fresh_problems(f"params.yaml: sets.{key}: sample", spec.sample)
        if spec.sample.solver == "consistency":
            problems += _step_problems(params, f"params.yaml: sets.{key}: sample", spec.sample.steps, 1.0)
    for key, edit in params.edits.items():
        settings, where = edit.edit, f"params.yaml: edits.{key}: edit"
        problems += _fresh_problems(where, settings)
        if settings.solver != "consistency":
            continue
        problems += _step_problems(params, where, settings.steps, settings.strength)
        if settings.start == "inversion":
            found = "inversion, and consistency jumps: there is no way back"
            problems.append(Problem(f"{where}.start", found, "Write `start: noise`, or another solver."))
    return problems


def find_grid_problems(params: Params) -> list[Problem]:
    """Consistency over a base, in order itself, whose schedule has fewer timesteps than consistency goes over."""
    timesteps = timesteps_of(read_json(config_folder(params.base, "scheduler") / "scheduler" / FILE))
    if timesteps >= GRID:
        return []
    asked: dict[str, str] = {f"sets.{key}: train.objective": spec.train.objective for key, spec in params.sets.items()}
    asked |= {f"sets.{key}: sample.solver": spec.sample.solver for key, spec in params.sets.items()}
    asked |= {f"edits.{key}: edit.solver": spec.edit.solver for key, spec in params.edits.items()}
    found = f"consistency, which goes over {GRID} timesteps, and the base's schedule has {timesteps}"
    return [
        Problem(f"params.yaml: {where}", found, "Write another.")
        for where, value in asked.items()
        if value == "consistency"
    ]


def distillation_warnings(params: Params) -> list[str]:
    """What is possible, and seldom meant."""
    from pipeline.adapted_base import objective_of_file

    warnings = []
    of_files = {one.file: objective_of_file(Path(one.file)) for one in params.base.adapters if one.weight}
    asked = [f"sets.{key}: sample" for key, spec in params.sets.items() if spec.sample.solver == "consistency"]
    asked += [f"edits.{key}: edit" for key, spec in params.edits.items() if spec.edit.solver == "consistency"]
    if asked and not params.base.adapters:
        warnings.append(
            f"solver: consistency ({', '.join(asked)}) without base.adapters: the base must be distilled itself, or "
            "pictures come out blurred"
        )
    distilled = [file for file, objective in of_files.items() if objective == "consistency"]
    if distilled and params.morphs:
        warnings.append(
            f"{distilled[0]} was trained for consistency, to be sampled in a few jumps, and the morphs "
            f"({', '.join(params.morphs)}) are made by the base with it: leave it out of base.adapters for those"
        )
    return warnings


def _fresh_problems(where: str, settings: SampleSection | EditSection) -> list[Problem]:
    if settings.solver != "midpoint" or not settings.fresh_noise:
        return []
    found = f"{settings.fresh_noise:g}, and midpoint draws none: each step goes on with what the one before has said"
    return [Problem(f"{where}.fresh_noise", found, "Write 0, or `solver: ddim`.")]


def _step_problems(params: Params, where: str, steps: int, strength: float) -> list[Problem]:
    if params.refiner.source is not None:
        found = "consistency, and the refiner has no part in its jumps"
        return [Problem(f"{where}.solver", found, "Write another solver, or refiner.source: null.")]
    most = min(MOST_STEPS, int(GRID * strength)) if strength else MOST_STEPS
    if steps <= most:
        return []
    if most < 1:
        fix = f"Write at least {1 / GRID:g}, or 0."
        return [Problem(f"{where}.strength", f"{strength:g} is less than one jump of consistency", fix)]
    found = f"{steps} steps, and consistency takes at most {most} here"
    return [Problem(f"{where}.steps", found, f"Write at most {most}, or another solver.")]
