"""`morphline fuse`: a base with adapters in its weights, as a folder. No DVC stage: it takes what a person names."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.adapted_base import open_with_adapters
from pipeline.adapters.combining import fuse
from pipeline.adapters.mixing import WeightedAdapter, is_of_text
from pipeline.base.checking import base_digest, is_single_file
from pipeline.base.families import DENOISER, FAMILIES, family_of
from pipeline.base.files import remove_local_path
from pipeline.base.opening import load_single_file, root_of
from pipeline.base.protocol import Base
from pipeline.commands.chosen import choose, read_chosen, require_base
from pipeline.commands.places import OF_STAGES, require_not_own, require_only
from pipeline.errors import Problem, UserError
from pipeline.inputs import read_json
from pipeline.outputs import atomic_folder
from pipeline.params import load_params
from pipeline.sections import BaseSection

KEPT = (".json", ".txt", ".safetensors")


def run(names: list[str], out: Path, force: bool) -> str:
    """Write the base of params.yaml with `base.adapters` and others fused into its weights, to the folder `out`; how to
    use it.

    It is a fresh copy: taking an adapter out of weights again is not exact, so that is not offered.

    Raises:
        UserError: for adapters that cannot be read or are not of this base, and an `out` that is there already.
    """
    if out.exists() and not force:
        raise UserError(Problem(str(out), "the folder exists already", "Use another name, or --force."))
    params = load_params()
    section = params.base
    check_replaceable(out, [section.source, section.config, params.refiner.source])
    chosen = choose(names)
    base, under = open_with_adapters(section, torch.device("cpu"), for_use=False)
    require_base(chosen, section, base.digest)
    adapters = read_chosen(chosen, base, fused=True)
    try:
        fuse(base, adapters)
    except ValueError as error:
        raise UserError(
            Problem(", ".join(names), str(error), "Use a smaller weight, or another `base.dtype`.")
        ) from None
    with atomic_folder(out) as partial:
        write_base(section, changed_parts(base, [*under, *adapters]), partial)
    digest = base_digest(section.model_copy(update={"source": str(out), "config": None}))
    written = f"{out}: to use it, write in params.yaml, under `base`,\n  source: {out}\n  revision: {digest}\n  config:"
    return written + ("\n  adapters: []" if under else "")


def check_replaceable(out: Path, used: Sequence[str | None]) -> None:
    """Let --force replace a base that was written before, and nothing else. used: what params.yaml names.

    Raises:
        UserError: when `out` is there and no base, holds other files, or is one of those, and where it is a place of
            the pipeline's own.
    """
    require_not_own(out, OF_STAGES)
    if not out.exists():
        return
    if out.resolve() in [Path(name).resolve() for name in used if name]:
        raise UserError(Problem(str(out), "it is the base itself", "Name another folder."))
    parts = {part for family in FAMILIES for part in family.parts}
    require_only(out, {"model_index.json", "feature_extractor", "safety_checker", *parts}, "model_index.json", "base")


def changed_parts(base: Base, adapters: Sequence[WeightedAdapter]) -> dict[str, Any]:
    """The models that adapters have changed, by their part of the base: the denoiser, and text encoders they name."""
    named = {name.partition(".")[0] for adapter, _ in adapters for name in adapter.factors if is_of_text(name)}
    return {DENOISER: base.denoiser} | {part: getattr(base, part) for part in sorted(named)}


def write_base(section: BaseSection, changed: Mapping[str, Any], folder: Path) -> None:
    """Write the base with some of its parts replaced. folder: empty, or not there.

    Every other part is copied as it is; of a single file the parts become a folder first.
    """
    if is_single_file(section):
        pipe = load_single_file(section, next(changed[DENOISER].parameters()).dtype)
        for part, model in changed.items():
            setattr(pipe, part, model)
        pipe.save_pretrained(folder, safe_serialization=True)
    else:
        root = root_of(section)
        parts = family_of(root).parts
        for part in (part for part in parts if part not in changed):
            for file in sorted((root / part).rglob("*")):
                if file.is_file() and file.suffix in KEPT:
                    target = folder / file.relative_to(root)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
        index = read_json(root / "model_index.json")
        # What is not copied, a safety checker above all, must not be looked for.
        index |= {name: [None, None] for name, value in index.items() if isinstance(value, list) and name not in parts}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for part, model in changed.items():
            model.save_pretrained(folder / part, safe_serialization=True)
    for config in folder.rglob("*.json"):
        remove_local_path(config)
