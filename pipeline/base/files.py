"""Whether the files of a base exist and are whole."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.errors import Problem

RESTORE = "Download or restore the base again."


def json_problems(path: Path, fix: str = RESTORE, **expected: tuple[str | None, ...]) -> list[Problem]:
    """Problems of a JSON object in a file. expected: key to the values that it may have."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [Problem(str(path), "the file is missing", fix)]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
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
        if index.is_file() and not json_problems(index):
            shards = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
            return variant, sorted({part / name for name in shards.values()})
    return None


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
