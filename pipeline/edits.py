"""Whether the edits and styles of params.yaml can be made: their adapters, masks and ControlNets, and their values."""

from dataclasses import replace
from pathlib import Path

from pipeline.adapters.store import is_file_name
from pipeline.errors import Problem, UserError
from pipeline.params import NONE, Params
from pipeline.pictures.captions import CaptionLength, length_problems
from pipeline.pictures.metadata import captions_of, stream_rows

RAW = Path("data/raw")


def find_edit_problems(params: Params, caption_length: CaptionLength | None) -> list[Problem]:
    """Edits whose values do not go together, or that name an adapter or a ControlNet which is not there."""
    if not params.edits:
        return []
    from pipeline.editing.control import find_control_problems
    from pipeline.editing.transfer import Transfer

    problems = []
    for key, spec in params.edits.items():
        where, settings = f"params.yaml: edits.{key}", spec.edit
        share = (settings.control.start, settings.control.end) if settings.control else (0.0, 1.0)
        transfer = Transfer(
            settings.steps, settings.strength, solver=settings.solver, control_from=share[0], control_until=share[1]
        )
        if settings.strength and transfer.steps_taken == 0:
            found = f"{settings.strength:g} of {settings.steps} steps is none at all"
            problems.append(Problem(f"{where}: edit.strength", found, "Write 0, or more of either."))
        for name in spec.adapters:
            problems += _adapter_name_problems(params, f"{where}.adapters", name)
        if caption_length and (settings.caption is not None or settings.suffix):
            texts = captions_of(RAW / spec.set) if settings.caption is None else [settings.caption]
            longest = max((text + settings.suffix for text in texts), key=caption_length, default="")
            at = f"{where}: edit.{'suffix' if settings.caption is None else 'caption'}"
            what = "a caption with the suffix" if settings.suffix else "a caption"
            problems += length_problems(at, longest, caption_length, what)
        if caption_length:
            problems += length_problems(f"{where}: edit.negative", settings.negative, caption_length)
        if settings.within_masks:
            problems += _mask_problems(where, spec.set)
        if (control := settings.control) is not None:
            at = f"{where}: edit.control"
            if control.low > control.high:
                problems.append(Problem(f"{at}.low", f"{control.low:g} lies above high", "Write at most `high`."))
            if control.start >= control.end:
                found = f"{control.start:g} does not lie before end"
                problems.append(Problem(f"{at}.start", found, "Write less than `end`, or control: null."))
            elif control.scale and (taken := transfer.steps_taken) and not any(transfer.with_control):
                found = f"of the steps taken ({taken}) none lies between {control.start:g} and {control.end:g} of them"
                problems.append(Problem(f"{at}.start", found, "Move start and end apart, or write more edit.steps."))
            problems += find_control_problems(control, params.base, at)
    return problems


def find_style_problems(params: Params) -> list[Problem]:
    """Morphs in the style of a set that has no one adapter."""
    return [
        Problem(
            f"params.yaml: morphs.{key}.style",
            f"the set {spec.style} has an adapter for each picture",
            "Name a set with `adapter: set`, or none.",
        )
        for key, spec in params.morphs.items()
        if spec.style != NONE and params.sets[spec.style].adapter != "set"
    ]


def _mask_problems(where: str, key: str) -> list[Problem]:
    """An edit within masks, of pictures that have none."""
    try:
        lacking = [row.file_name for row in stream_rows(RAW / key) if row.mask is None]
    except UserError:
        return []  # the set's own problems are reported already
    if not lacking:
        return []
    found = f"{len(lacking)} of the set's pictures have no mask, {lacking[0]} first"
    fix = f'Write "mask": "..." into their rows in {RAW / key}/metadata.jsonl, or false.'
    return [Problem(f"{where}: edit.within_masks", found, fix)]


def _adapter_name_problems(params: Params, where: str, name: str) -> list[Problem]:
    """The name of an adapter that the set will not have, or that could be several of its."""
    if is_file_name(name):
        return [replace(problem, where=f"{where}: {problem.where}") for problem in _file_problems(params, name)]
    key, slash, picture = name.partition("/")
    try:
        stems = [Path(row.file_name).stem for row in stream_rows(RAW / key)]
    except UserError:
        return []  # the set's own problems are reported already
    if params.sets[key].adapter == "set":
        return [Problem(where, f"{name!r}: the set {key} has one adapter for all", f"Write {key}.")] if slash else []
    if not slash and len(stems) > 1:
        found = f"{name!r}: the set {key} has an adapter for each of {len(stems)} pictures"
        return [Problem(where, found, f"Name one, such as {key}/{stems[0]}.")]
    if slash and picture not in stems:
        return [Problem(where, f"{name!r}: the set {key} has no such picture", f"Choose from: {', '.join(stems[:8])}.")]
    return []


def _file_problems(params: Params, name: str) -> list[Problem]:
    """A file of an adapter that is not there, not whole, or does not fit the base."""
    from pipeline.base.opening import layers_without_weights
    from pipeline.exchange.named import find_file_problems

    return find_file_problems(name, params.base, layers_without_weights(params.base))
