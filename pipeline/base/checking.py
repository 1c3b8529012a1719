"""Whether a base is there and whole, and a digest of it, found without loading it (and without torch)."""

import hashlib
import json
import re
import struct
from pathlib import Path

from pipeline.errors import Problem
from pipeline.params import BaseSection

COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SHIPPED = Path("models/pocket")


def is_hub_id(section: BaseSection) -> bool:
    """A source that is no local path, of the form owner/name, is a Hub id."""
    return not Path(section.source).exists() and bool(_HUB_ID.fullmatch(section.source)) and not is_single_file(section)


def is_single_file(section: BaseSection) -> bool:
    """A single .safetensors file beside a config folder."""
    return section.source.endswith(".safetensors")


def find_base_problems(section: BaseSection) -> list[Problem]:
    """Everything that would keep this base from opening. The Hub is asked only for a Hub id."""
    source = Path(section.source)
    if is_single_file(section):
        problems = _single_file_problems(section)
    elif source.is_dir():
        problems = _folder_problems(source)
    elif is_hub_id(section):
        return _hub_problems(section)
    else:
        found = f"there is no folder {section.source!r}, and it is no Hub id (owner/name)"
        return [Problem("params.yaml: base.source", found, "Correct the path, or `git checkout models/pocket`.")]
    if not problems and source != SHIPPED:
        problems += _pin_problems(section)
    return problems


def tokenizer_folder(section: BaseSection) -> Path:
    """The folder whose `tokenizer` subfolder says how long a caption may be. A Hub id's is fetched."""
    if is_hub_id(section):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(section.source, revision=section.revision, allow_patterns=["tokenizer/*"]))
    return Path(section.config or section.source) if is_single_file(section) else Path(section.source)


def base_digest(section: BaseSection) -> str:
    """What the base is, in one line: `owner/name@commit` for a Hub id, else a SHA-256 over its files."""
    if is_hub_id(section):
        return f"{section.source}@{section.revision}"
    source = Path(section.source)
    if is_single_file(section):
        config = Path(section.config or "")
        named = {"weights": source} | {path.relative_to(config).as_posix(): path for path in config.rglob("*.json")}
    else:
        files = [path for part in COMPONENTS for path in (source / part).rglob("*") if path.is_file()]
        named = {path.relative_to(source).as_posix(): path for path in [source / "model_index.json", *files]}
    total = hashlib.sha256()
    for name, path in sorted(named.items()):
        total.update(f"{name}\0{_sha256(path)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pin_problems(section: BaseSection) -> list[Problem]:
    digest = base_digest(section)
    if section.revision == digest:
        return []
    found = "a base of your own must be pinned" if section.revision is None else f"{section.source} has changed"
    return [Problem("params.yaml: base.revision", found, f"If its files are right, write `revision: {digest}`.")]


def _hub_problems(section: BaseSection) -> list[Problem]:
    if section.revision is None or not re.fullmatch(r"[0-9a-f]{40}", section.revision):
        # More often a path with a slip of the pen than an id of the Hub.
        found = f"there is no folder {section.source!r}, and for a Hub id {section.revision!r} is no commit"
        mend = "Correct the path; or write a Hub id's commit, 40 hex digits, in base.revision (a branch can change)."
        return [Problem("params.yaml: base.source", found, mend)]
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        index = Path(hf_hub_download(section.source, "model_index.json", revision=section.revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        found = (
            f"the Hub has no {section.source} at {section.revision[:12]}, or cannot be reached ({_first_line(error)})"
        )
        mend = "Correct the id and the revision, log in with `hf auth login`, or use a local folder."
        return [Problem("params.yaml: base.source", found, mend)]
    return _index_problems(index)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _single_file_problems(section: BaseSection) -> list[Problem]:
    problems = []
    source = Path(section.source)
    if source.is_file():
        problems += _weights_problems(source)
    else:
        problems.append(Problem("params.yaml: base.source", f"there is no file {source}", "Correct the path."))
    config = Path(section.config) if section.config else None
    if config is None or not (config / "model_index.json").is_file():
        found = "a single .safetensors file holds no configs" if config is None else f"no model_index.json in {config}"
        mend = "Name a diffusers folder of the same architecture (its weights are not needed)."
        problems.append(Problem("params.yaml: base.config", found, mend))
    else:
        problems += _index_problems(config / "model_index.json")
    return problems


def _folder_problems(folder: Path) -> list[Problem]:
    index = folder / "model_index.json"
    if not index.is_file():
        mend = "A base is a diffusers folder; restore it, or choose another base.source."
        return [Problem(str(folder), "model_index.json is missing", mend)]
    problems = _index_problems(index)
    if problems:
        return problems
    mend = "Download or restore the base again."
    for component in COMPONENTS:
        part = folder / component
        if not part.is_dir():
            problems.append(Problem(str(part), "the folder is missing", mend))
            continue
        config = part / {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(
            component, "config.json"
        )
        problems += _json_problems(config, mend)
        if component in _WEIGHTS:
            problems += _component_weights_problems(part, _WEIGHTS[component], mend)
        elif component == "tokenizer" and not any((part / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            problems.append(Problem(str(part), "neither tokenizer.json nor vocab.json is there", mend))
    return problems


def _index_problems(index: Path) -> list[Problem]:
    problems = _json_problems(index, "Restore it.")
    if problems:
        return problems
    name = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    if name != "StableDiffusionPipeline":
        mend = "Choose a Stable Diffusion 1.x or 2.x base."
        return [Problem(str(index), f"a {name} is not supported", mend)]
    return []


def _json_problems(path: Path, mend: str) -> list[Problem]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [Problem(str(path), "the file is missing", mend)]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        return [Problem(str(path), f"not valid JSON ({_first_line(error)})", mend)]
    return [] if isinstance(content, dict) else [Problem(str(path), "not a JSON object", mend)]


def _component_weights_problems(part: Path, stem: str, mend: str) -> list[Problem]:
    files = sorted(part.glob(f"{stem}*.safetensors"))
    if not files:
        pickled = any(part.glob("*.bin")) or any(part.glob("*.ckpt"))
        found = "only pickled weights, which can run code when opened" if pickled else f"no {stem}*.safetensors"
        mend = "Use a base with safetensors weights." if pickled else mend
        return [Problem(str(part), found, mend)]
    return [problem for file in files for problem in _weights_problems(file)]


def _weights_problems(file: Path) -> list[Problem]:
    """A safetensors file says in its header how long it must be; a broken download is shorter."""
    mend = "Download or restore the file again."
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, 100_000_000):
            return [Problem(str(file), "not a safetensors file, or cut off within its header", mend)]
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError, IndexError):
            return [Problem(str(file), "the safetensors header is damaged", mend)]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        return [Problem(str(file), f"cut off or damaged: {size} bytes where its header says {expected}", mend)]
    return []
