"""Whether the files of a base are there and whole."""

import json
import struct
from pathlib import Path

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


def whole_weights(part: Path, stem: str) -> tuple[str, list[Path]] | None:
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
    found = whole_weights(part, stem)
    if found is None:
        pickled = any(part.glob("*.bin")) or any(part.glob("*.ckpt"))
        what = "only pickled weights, which can run code when opened" if pickled else f"no {stem}.safetensors"
        return [Problem(str(part), what, "Use a base with safetensors weights." if pickled else RESTORE)]
    return [problem for file in found[1] for problem in safetensors_problems(file)]


def safetensors_problems(file: Path) -> list[Problem]:
    """A safetensors file says in its header how long it must be; a broken download is shorter."""
    fix = "Download or restore the file again."
    if not file.is_file():
        return [Problem(str(file), "the file is missing", fix)]
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, 100_000_000):
            return [Problem(str(file), "not a safetensors file, or cut off within its header", fix)]
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError, IndexError):
            return [Problem(str(file), "the safetensors header is damaged", fix)]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        return [Problem(str(file), f"cut off or damaged: {size} bytes where its header says {expected}", fix)]
    return []
