"""What a served model consists of: which base, adapters, keyframes, and how pictures and frames are made of them.

A package is a folder that needs neither the project nor params.yaml, and holds no code and no weights of the base,
which it names by its digest:

    package.json                     see `Package`
    adapters/<name>.safetensors      `woodcut` (a set that has one) or `alps/dawn` (a set and picture)
    keyframes/<name>.png             of a morph: the prepared pictures
    preview.png                      how its pictures look, for people
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from pipeline.adapters.store import ADAPTERS, read_index
from pipeline.errors import Problem, UserError
from pipeline.frames.prepared import prepared_name, read_captions
from pipeline.inputs import read_plain
from pipeline.outputs import reading, require_output
from pipeline.params import NONE, Params
from pipeline.sections import BaseSection, MorphSection, PrepareSection, SampleSection, Section

FILE, PREVIEW = "package.json", "preview.png"
BATCH = 16
"""Samples at once where params.yaml leaves it open: a request must not decide how much memory is taken."""


def _inside(name: str) -> str:
    parts = PurePosixPath(name).parts
    if name != "/".join(parts) or ".." in parts or not name or name.startswith("/") or "\\" in name:
        raise ValueError("names should be relative, without ..")
    return name


Name = Annotated[str, AfterValidator(_inside)]


class PackagedKeyframe(Section):
    """A keyframe of a morph by its name in requests: its caption, and the adapter that was trained on it."""

    name: Name
    text: str
    adapter: Name


class Package(Section):
    """Everything that decides an answer but the request.

    base, digest: the base, with the places of its own adapters in here, and what the others are bound to. prepare,
    morph, sample: sections as in params.yaml, with the set's or morph's own values merged in. adapters: names of the
    files. keyframes: of a morph, in order. style: the adapter that lies over all frames, at the morph's weights, unless
    a request says otherwise.
    """

    base: BaseSection
    digest: str
    prepare: PrepareSection
    morph: MorphSection
    sample: SampleSection
    adapters: tuple[Name, ...]
    keyframes: tuple[PackagedKeyframe, ...]
    style: Name | None
    batch: int = Field(ge=1, le=4096)

    @field_validator("sample", mode="before")
    @classmethod
    def _older_sample(cls, sample: object) -> object:
        """Models registered before the key was there drew all of the noise anew for consistency, and none else."""
        if not isinstance(sample, dict):
            return sample
        return {"fresh_noise": 1.0 if sample.get("solver") == "consistency" else 0.0} | sample


@dataclass(frozen=True)
class Contents:
    """A package before it is written. files: place in the package to the file of the project."""

    package: Package
    files: Mapping[str, Path]


def contents_of(params: Params, stage: str) -> Contents:
    """What is packed of `train@SET`, the set's adapters, or of `morph@MORPH`, its recipe.

    Raises:
        UserError: when it is not made yet.
    """
    from pipeline.base.opening import adapters_digest  # loads torch and diffusers

    kind, _, key = stage.partition("@")
    contents = (set_contents if kind == "train" else morph_contents)(params, key, adapters_digest(params.base))
    under = {f"base/{number}.safetensors": one for number, one in enumerate(params.base.adapters)}
    own = tuple(one.model_copy(update={"file": place}) for place, one in under.items())
    base = params.base.model_copy(update={"adapters": own})
    files = {**contents.files, **{place: Path(one.file) for place, one in under.items()}}
    return Contents(contents.package.model_copy(update={"base": base}), files)


def set_contents(params: Params, key: str, digest: str) -> Contents:
    """The adapters of a set. digest: of the base, as adapters are bound to it.

    Raises:
        UserError: when there is no such set, or it is not trained.
    """
    spec = params.get_set(key)
    adapters = _adapters(params, key)
    style = key if spec.adapter == "set" else None
    package = Package(
        base=params.base,
        digest=digest,
        prepare=spec.prepare,
        morph=params.morph,
        sample=spec.sample,
        adapters=tuple(adapters),
        keyframes=(),
        style=style,
        batch=max(params.machine.batch or BATCH, params.morph.least_batch),
    )
    return Contents(package, _places(adapters) | _preview(Path("reports/samples", f"{key}.png")))


def morph_contents(params: Params, key: str, digest: str) -> Contents:
    """The recipe of a morph: its keyframes with their captions and adapters, its style, its settings.

    Raises:
        UserError: when there is no such morph, or its sets are not prepared and trained.
    """
    spec = params.get_morph(key)
    prepared = require_output(Path("data/prepared", spec.set), f"prepare@{spec.set}")
    captions, index = read_captions(prepared), read_index(ADAPTERS / spec.set)
    keyframes, adapters, pictures = [], dict[str, Path](), dict[str, Path]()
    for raw in spec.keyframes:
        name = prepared_name(raw)
        with reading(prepared / "metadata.jsonl"):
            text = captions[name]
        with reading(ADAPTERS / spec.set / "adapters.json"):
            file = index[name]
        adapter = _name(params, spec.set, file)
        adapters[adapter] = ADAPTERS / spec.set / file
        pictures[f"keyframes/{Path(name).stem}.png"] = prepared / name
        keyframes.append(PackagedKeyframe(name=Path(name).stem, text=text, adapter=adapter))
    if spec.style != NONE:
        adapters |= _adapters(params, spec.style)
    package = Package(
        base=params.base,
        digest=digest,
        prepare=params.get_set(spec.set).prepare,
        morph=spec.morph,
        sample=params.get_set(spec.set).sample,
        adapters=tuple(adapters),
        keyframes=tuple(keyframes),
        style=None if spec.style == NONE else spec.style,
        batch=max(params.machine.batch or BATCH, spec.morph.least_batch),
    )
    return Contents(package, _places(adapters) | pictures | _preview(Path("data/morphs", key, "strip.png")))


def write_package(contents: Contents, folder: Path) -> None:
    """Write a package into an empty folder."""
    for place, source in contents.files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        with reading(source):
            shutil.copyfile(source, folder / place)
    (folder / FILE).write_text(contents.package.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_package(folder: Path) -> Package:
    """What `write_package` wrote.

    Raises:
        UserError: when it is missing or damaged.
    """
    try:
        package = Package.model_validate_json(read_plain(folder / FILE))
        lacking = [file for file in _files(package) if not (folder / file).is_file()]
        if lacking:
            raise ValueError(f"{lacking[0]} is missing")
        return package
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
        fix = "Write the model again: `morphline package KEY`."
        raise UserError(Problem(str(folder / FILE), f"no package that can be served ({reason})", fix)) from None


def adapter_file(name: str) -> str:
    """Where an adapter lies in a package."""
    return f"adapters/{name}.safetensors"


def keyframe_file(name: str) -> str:
    """Where a keyframe's picture lies in a package."""
    return f"keyframes/{name}.png"


def _files(package: Package) -> list[str]:
    keyframes = (keyframe_file(keyframe.name) for keyframe in package.keyframes)
    return [*map(adapter_file, package.adapters), *keyframes, *(one.file for one in package.base.adapters)]


def _adapters(params: Params, key: str) -> dict[str, Path]:
    files = sorted(set(read_index(ADAPTERS / key).values()))
    return {_name(params, key, file): ADAPTERS / key / file for file in files}


def _name(params: Params, key: str, file: str) -> str:
    """As edits name adapters: the set, and the picture where each has one of its own."""
    return key if params.get_set(key).adapter == "set" else f"{key}/{Path(file).stem}"


def _places(adapters: Mapping[str, Path]) -> dict[str, Path]:
    return {adapter_file(name): path for name, path in adapters.items()}


def _preview(path: Path) -> dict[str, Path]:
    return {PREVIEW: path} if path.is_file() else {}
