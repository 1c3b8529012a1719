"""Whether a base exists and is whole, and its digest, without loading it (and without torch)."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.base.digests import file_sha256
from pipeline.base.families import FAMILIES, FAMILIES_AT, Family, family_of
from pipeline.base.files import RESTORE, json_problems, safetensors_problems, single_file_problems, weights_problems
from pipeline.base.hub import fetch, list_files
from pipeline.base.schedule import FILE
from pipeline.errors import Problem, UserError
from pipeline.inputs import read_json
from pipeline.sections import BaseSection

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SHIPPED = Path("models/pocket")


def is_hub_id(section: BaseSection) -> bool:
    """A source of the form owner/name that is not a local path is a Hub id."""
    there = os.path.lexists(section.source)
    return not there and bool(_HUB_ID.fullmatch(section.source)) and not is_single_file(section)


def is_single_file(section: BaseSection) -> bool:
    """A single .safetensors file beside a config folder."""
    return section.source.endswith(".safetensors")


def find_base_problems(section: BaseSection) -> list[Problem]:
    """Everything that would keep this base from loading, as far as its files tell (see `fitting.py` for more). The Hub
    is queried only for a Hub id."""
    source = Path(section.source)
    if is_single_file(section):
        problems = _single_file_problems(section)
    elif os.path.isdir(source):
        problems = _folder_problems(source, FAMILIES_AT[section.KEY])
    elif is_hub_id(section):
        return _hub_problems(section)
    else:
        found = f"there is no folder {section.source!r}, and it is not a Hub id (owner/name)"
        shipped = ", or `git checkout models/pocket`" if section.KEY == "base" else ", or write null"
        return [Problem(_place(section, "source"), found, f"Correct the path{shipped}.")]
    if not problems and source != SHIPPED:
        problems += _pin_problems(section)
    return problems


def _place(section: BaseSection, name: str) -> str:
    return f"params.yaml: {section.KEY}.{name}"


def inpaints(section: BaseSection) -> bool:
    """Whether a base that is in order was made to fill holes: it takes more than latents."""
    root = config_folder(section, "unet")
    channels = read_json(root / "unet/config.json").get("in_channels", 4)
    return bool(channels > read_json(config_folder(section, "vae") / "vae/config.json").get("latent_channels", 4))


def base_warnings(section: BaseSection) -> list[str]:
    """What a base without problems should be told of."""
    config = config_folder(section, "scheduler") / "scheduler" / FILE
    scheduler = read_json(config)
    if scheduler.get("rescale_betas_zero_snr") and scheduler.get("timestep_spacing", "leading") == "leading":
        return [
            f"{config}: with zero terminal SNR the last timestep is pure noise, and `leading` spacing never goes there:"
            ' write "timestep_spacing": "trailing" (Lin et al. 2024), and pin the base anew'
        ]
    return []


def config_folder(section: BaseSection, part: str) -> Path:
    """The folder with the subfolder `part` of the base's configs. That of a Hub id is downloaded, without weights."""
    if is_hub_id(section):
        return cached(section) or fetch(section, [f"{part}/*.json", f"{part}/*.txt"])
    return Path(section.config or section.source) if is_single_file(section) else Path(section.source)


def base_family(section: BaseSection) -> Family:
    """The family of a base whose files are in order."""
    if is_hub_id(section):
        return family_of(cached(section) or fetch(section, ["model_index.json"]))
    return family_of(Path(section.config or "") if is_single_file(section) else Path(section.source))


def base_digest(section: BaseSection) -> str:
    """What identifies the base: `owner/name@commit` for a Hub id, else a SHA-256 over its files."""
    if is_hub_id(section):
        return f"{section.source}@{section.revision}"
    source = Path(section.source)
    if is_single_file(section):
        config = Path(section.config or "")
        configs = [path for path in config.rglob("*") if path.is_file() and path.suffix in (".json", ".txt")]
        named = {"weights": source} | {path.relative_to(config).as_posix(): path for path in configs}
    else:
        parts = {part for family in FAMILIES for part in family.parts}
        files = [path for part in parts for path in (source / part).rglob("*") if path.is_file()]
        named = {path.relative_to(source).as_posix(): path for path in [source / "model_index.json", *files]}
    total = hashlib.sha256()
    for name, path in sorted(named.items()):
        total.update(f"{name}\0{file_sha256(path)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _pin_problems(section: BaseSection) -> list[Problem]:
    digest = base_digest(section)
    if section.revision == digest:
        return []
    found = "a base of your own must be pinned" if section.revision is None else f"{section.source} has changed"
    return [Problem(_place(section, "revision"), found, f"If its files are right, write `revision: {digest}`.")]


def no_commit(revision: str | None) -> str:
    """What is wrong with the revision of a Hub id, in words."""
    return "no commit is named" if revision is None else f"{revision!r} is not a commit"


def _hub_problems(section: BaseSection) -> list[Problem]:
    if section.revision is None or not re.fullmatch(r"[0-9a-f]{40}", section.revision):
        # More often a mistyped path than a Hub id.
        found = f"there is no folder {section.source!r}, and for a Hub id {no_commit(section.revision)}"
        what = f"{section.KEY}.revision (a branch can change)"
        fix = f"Correct the path; or write a Hub id's commit, 40 hex digits, in {what}."
        return [Problem(_place(section, "source"), found, fix)]
    if cached(section):
        return []
    try:
        parts = {part for family in FAMILIES for part in family.parts}
        texts = [f"{part}/*.{suffix}" for part in sorted(parts) for suffix in ("json", "txt")]
        config = fetch(section, ["model_index.json", *texts])
        files = list_files(section)
    except UserError as error:
        return list(error.problems)
    problems = _folder_problems(config, FAMILIES_AT[section.KEY], with_weights=False)
    weights = family_of(config).weights if not problems else {}
    for component, stem in weights.items():
        if not any(re.fullmatch(rf"{component}/{stem}(-\d.*)?(\.fp16)?\.safetensors", name) for name in files):
            fix = "Use a base with safetensors weights."
            problems.append(Problem(f"{section.source}: {component}", "no safetensors weights on the Hub", fix))
    return problems


def cached(section: BaseSection, problems_of: Callable[[Path], list[Problem]] | None = None) -> Path | None:
    """The folder of a Hub base in this machine's cache, if all of it is there: a commit never changes, so nothing needs
    to be asked, and nodes without a network can work.

    problems_of: says what a folder lacks, for what is no base.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        root = Path(snapshot_download(section.source, revision=section.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    problems = problems_of(root) if problems_of else _folder_problems(root, FAMILIES_AT[section.KEY])
    return None if problems else root


def _single_file_problems(section: BaseSection) -> list[Problem]:
    source = Path(section.source)
    if section.config is None:
        fix = "Name a diffusers folder of the same architecture (its weights are not needed)."
        problems = [Problem("params.yaml: base.config", "a single .safetensors file contains no configs", fix)]
    else:
        problems = _folder_problems(Path(section.config), FAMILIES_AT[section.KEY], with_weights=False)
    if not os.path.isfile(source):
        problems.append(Problem(_place(section, "source"), f"there is no file {source}", "Correct the path."))
    elif section.config is None or problems:
        problems += safetensors_problems(source)
    else:
        config = Path(section.config)
        problems += single_file_problems(source, family_of(config), config / "scheduler" / FILE)
    return problems


def _folder_problems(folder: Path, families: Sequence[Family], with_weights: bool = True) -> list[Problem]:
    index = folder / "model_index.json"
    if not os.path.isfile(index):
        fix = "A base is a diffusers folder; restore it, or choose another."
        return [Problem(str(folder), "model_index.json is missing", fix)]
    problems = json_problems(index, _class_name=tuple(name for family in families for name in family.pipelines))
    if problems:
        return problems
    family, told = family_of(folder), read_json(index)
    for key, value in family.index.items():
        if told.get(key) != value:
            fix = f"{family.name} has {json.dumps(value)} there: use that model's own folder."
            return [Problem(str(index), f"{key} is {told.get(key)!r}", fix)]
    for component, (config, expected) in family.configs.items():
        part = folder / component
        if not part.is_dir():
            problems.append(Problem(str(part), "the folder is missing", RESTORE))
            continue
        problems += json_problems(part / config, RESTORE, **expected)
        if with_weights and component in family.weights:
            problems += weights_problems(part, family.weights[component])
    for tokenizer in (folder / part for part in family.tokenizers):
        if tokenizer.is_dir() and not any((tokenizer / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            problems.append(Problem(str(tokenizer), "neither tokenizer.json nor vocab.json exists", RESTORE))
    return problems
