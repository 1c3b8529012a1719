"""Whether the files of a base exist and are whole."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.base.families import FAMILIES, Family
from pipeline.errors import Problem
from pipeline.inputs import read_json

RESTORE = "Download or restore the base again."


def json_problems(path: Path, fix: str = RESTORE, **expected: tuple[str | None, ...]) -> list[Problem]:
    """Problems of a JSON object in a file. expected: key to the values that it may have."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        return [Problem(str(path), "the file is missing", fix)]
    except OSError as error:
        return [Problem(str(path), f"the file cannot be read ({error.strerror})", fix)]
    except ValueError as error:
        return [Problem(str(path), f"not valid JSON ({str(error).splitlines()[0]})", fix)]
    if not isinstance(content, dict):
        return [Problem(str(path), "not a JSON object", fix)]
    return [
        Problem(str(path), f"{key} is {content.get(key)!r}", f"Supported: {', '.join(filter(None, values))}.")
        for key, values in expected.items()
        if content.get(key) not in values
    ]


def find_weights(part: Path, stem: str) -> tuple[str, list[Path]] | None:
    """(variant, files) of a component's weights: plain ones, else "fp16" ones; whole or in shards. None: neither."""
    for variant in ("", "fp16"):
        dotted = f".{variant}" if variant else ""
        single = part / f"{stem}{dotted}.safetensors"
        if single.is_file():
            return variant, [single]
        index = part / f"{stem}.safetensors.index{dotted}.json"
        if index.is_file() and (shards := _shards(index)):
            return variant, [part / name for name in shards]
    return None


def _shards(index: Path) -> list[str]:
    """The names of files in an index of shards; none where it is damaged, or names anything else."""
    if json_problems(index):
        return []
    named = read_json(index).get("weight_map")
    names = list(named.values()) if isinstance(named, dict) else []
    # Beside the index, and no other file of this machine.
    plain = all(isinstance(name, str) and re.fullmatch(r"\w[\w.-]*\.safetensors", name) for name in names)
    return sorted(set(names)) if plain else []


def weights_problems(part: Path, stem: str) -> list[Problem]:
    """Problems of a component's weights in a diffusers folder."""
    found = find_weights(part, stem)
    if found is None:
        pickled = any(part.glob("*.bin")) or any(part.glob("*.ckpt"))
        what = "only pickled weights, which can run code when loaded" if pickled else f"no {stem}.safetensors"
        return [Problem(str(part), what, "Use a base with safetensors weights." if pickled else RESTORE)]
    return [problem for file in found[1] for problem in safetensors_problems(file)]


def safetensors_problems(file: Path) -> list[Problem]:
    """Problems of a safetensors file. Its header says how long the file must be, so a broken download is noticed."""
    fix = "Download or restore the file again."
    if not file.is_file():
        return [Problem(str(file), "the file is missing", fix)]
    try:
        with safe_open(file, framework="numpy"):
            return []
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        return [Problem(str(file), f"cut off or damaged, or not a safetensors file ({reason})", fix)]
    except OSError as error:
        return [Problem(str(file), f"the file cannot be read ({error.strerror or error})", "Make it readable.")]


ORIGINAL = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}
"""Part of a base to how its tensors' names begin in a single file."""


def single_file_problems(file: Path, family: Family, scheduler: Path) -> list[Problem]:
    """Problems of a single file with all parts of a base: damage, another family's, a part that is not in it, or a
    noise schedule other than that of the scheduler_config.json beside it."""
    if problems := safetensors_problems(file):
        return problems
    with safe_open(file, framework="numpy") as content:
        names = list(content.keys())
    held = {part for part, starts in ORIGINAL.items() if any(name.startswith(starts) for name in names)}
    lacking = [part for part in ORIGINAL if part in family.weights and part not in held]
    other = next((one for one in FAMILIES if one is not family and held == set(one.weights)), None)
    if other:
        fix = f"Name a diffusers folder of {other.name} in base.config (its weights are not needed), or another file."
        return [Problem(str(file), f"it is a file of {other.name}, and base.config is of {family.name}", fix)]
    if lacking:
        fix = "Use a checkpoint with UNet, autoencoder and text encoder in one file, or a diffusers folder."
        return [Problem(str(file), f"it holds no {', '.join(lacking)}", fix)]
    return _marked_problems(file, names, scheduler)


def _marked_problems(file: Path, names: Sequence[str], scheduler: Path) -> list[Problem]:
    """What empty tensors say of the training, as makers of checkpoints agreed: `v_pred`, `ztsnr`, `edm_...`."""
    if edm := next((name for name in names if name.startswith("edm_")), None):
        fix = "Use a base that was trained on betas, as Stable Diffusion 1, 2 and XL were."
        return [Problem(str(file), f"it is marked {edm}: a noise schedule of another kind", fix)]
    config = read_json(scheduler)
    wanted = {"v_pred": ("prediction_type", "v_prediction"), "ztsnr": ("rescale_betas_zero_snr", True)}
    return [
        Problem(
            str(scheduler),
            f"{key} is {json.dumps(config.get(key))}, and {file} is marked {mark}",
            f'Write "{key}": {json.dumps(value)} there.',
        )
        for mark, (key, value) in wanted.items()
        if mark in names and config.get(key) != value
    ]


def remove_local_path(config: Path) -> None:
    """Remove the local path that the libraries write: a model must not name a folder of the machine it was made on."""
    content = json.loads(config.read_text(encoding="utf-8"))
    if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
