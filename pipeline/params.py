"""The whole of params.yaml as frozen models. Nothing else reads that file.

A set or a morph may override values of its own sections under its key; `load_params` merges them, so that
`params.sets["alps"].train` is the complete training section of that set.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import Problem, UserError
from pipeline.inputs import BadYaml, parse_yaml, read_plain
from pipeline.overrides import is_inherited, merge_overrides
from pipeline.validation import explain_errors

MOST = 2**20
"""Bytes of the file; the shipped one has twelve thousand."""

KEY = r"^[a-z0-9][a-z0-9-]*$"  # not first a hyphen: a command would take such a key for an option
LONGEST_KEY = 100  # letters; folders, files and runs are named by it
Key = Annotated[str, Field(pattern=KEY, max_length=LONGEST_KEY)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Byte = Annotated[int, Field(ge=0, le=255)]


def _rising(alphas: tuple[float, ...]) -> tuple[float, ...]:
    if alphas[0] != 0 or alphas[-1] != 1 or any(b <= a for a, b in pairwise(alphas)):
        raise ValueError("alphas should rise from 0 to 1")
    return alphas


Alphas = Annotated[tuple[Fraction, ...], Field(strict=False, min_length=3), AfterValidator(_rising)]

Entry = TypeVar("Entry")


class Section(BaseModel):
    """A frozen mapping of params.yaml: unknown keys and implicit conversions are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class BaseSection(Section):
    """The frozen diffusion model that adapters are trained on."""

    source: str = Field(min_length=1)
    revision: str | None
    config: str | None
    dtype: Literal["float32", "tf32", "bfloat16", "float16"]
    clip_skip: int = Field(ge=0, le=30)

    def tags(self) -> dict[str, str]:
        """Which base it is, for tracking."""
        return {"base.source": self.source, "base.revision": self.revision or "as in the repository"}


class PrepareSection(Section):
    """How raw pictures become training pictures."""

    width: int = Field(ge=64, le=4096, multiple_of=8)
    height: int = Field(ge=64, le=4096, multiple_of=8)
    resample: Literal["lanczos", "bicubic", "area"]
    background: tuple[Byte, ...] = Field(strict=False, min_length=3, max_length=3)
    max_megapixels: float = Field(gt=0, le=1000)


class TrainSection(Section):
    """How an adapter is trained."""

    steps: int = Field(ge=1, le=1_000_000)
    batch: int = Field(ge=1, le=1024)
    accumulation: int = Field(ge=1, le=1024)
    optimizer: Literal["adamw", "adamw8bit"]
    learning_rate: float = Field(gt=0, le=1)
    b_rate: float = Field(gt=0, le=1000)
    schedule: Literal["constant", "linear", "cosine"]
    warmup: int = Field(ge=0, le=1_000_000)
    weight_decay: float = Field(ge=0, le=1)
    max_grad_norm: float = Field(gt=0, le=1e6)
    min_snr_gamma: Annotated[float, Field(gt=0, le=1000)] | None
    noise_offset: float = Field(ge=0, le=1)
    caption_dropout: Fraction
    flip: bool
    rank: int = Field(ge=1, le=1024)
    alpha: float = Field(gt=0, le=4096)
    rank_stabilised: bool
    targets: (
        Literal["attention", "attention+feed-forward"]
        | Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1)]
    )
    init: Literal["kaiming", "gaussian"]
    gradient_checkpointing: bool
    hold_out: int = Field(ge=0, le=1000)
    validate_every: Annotated[int, Field(ge=1, le=1_000_000)] | None
    patience: Annotated[int, Field(ge=1, le=1000)] | None
    target_loss: Annotated[float, Field(gt=0)] | None
    seed: int = Field(ge=0, lt=2**63)


class SampleSection(Section):
    """Which pictures show what a set's adapters learned."""

    captions: int = Field(ge=1, le=64)
    seeds: int = Field(ge=1, le=16)
    weights: tuple[Annotated[float, Field(ge=-4, le=4)], ...] = Field(strict=False, min_length=1, max_length=16)
    steps: int = Field(ge=2, le=1000)
    guidance: float = Field(ge=1, le=50)
    seed: int = Field(ge=0, lt=2**63)


class MorphSection(Section):
    """How the frames between keyframes are made."""

    frames: int = Field(ge=3, le=10_000)
    steps: int = Field(ge=2, le=1000)
    inversion_steps: int = Field(ge=2, le=1000)
    solver: Literal["midpoint", "ddim"]
    adain: bool
    attention: tuple[Literal["down", "mid", "up"], ...] = Field(strict=False)
    attention_until: Fraction
    attention_source: Literal["inputs", "keys-values"]
    guidance: float = Field(ge=1, le=50)
    rescale: Fraction
    negative: str
    pacing: (
        Literal["linear", "perceptual"]
        | Annotated[tuple[Fraction, ...], Field(strict=False, min_length=3), AfterValidator(_rising)]
    )
    pacing_spare: int = Field(ge=0, le=1000)
    without_adapters: bool
    loop: bool
    correct_ends: Fraction
    fps: float = Field(gt=0, le=120)
    hold: float = Field(ge=0, le=60)


class EvaluateSection(Section):
    """How a morph is measured."""

    max_side: int = Field(ge=64, le=4096)
    lpips: str | None
    lpips_digest: str | None


class PocketSection(Section):
    """How the small base that ships with the repository is made."""

    seed: int = Field(ge=0, le=99)  # ten million paintings each; those from 10^9 on are held out
    init_from: str | None
    paintings: int = Field(ge=16, le=10_000_000)
    textures: int = Field(ge=0, le=10_000_000)
    autoencoder_steps: int = Field(ge=1, le=10_000_000)
    autoencoder_batch: int = Field(ge=1, le=4096)
    autoencoder_rate: float = Field(gt=0, le=1)
    decoder_steps: int = Field(ge=0, le=10_000_000)
    decoder_rate: float = Field(gt=0, le=1)
    keep_encoder: bool
    latent_noise: float = Field(gt=0, le=1)
    unet_steps: int = Field(ge=1, le=10_000_000)
    unet_batch: int = Field(ge=1, le=4096)
    unet_rate: float = Field(gt=0, le=1)
    caption_dropout: Fraction
    between: Fraction
    ema: float = Field(ge=0, lt=1)
    compile: bool


class MachineSection(Section):
    """What the work runs on. Never changes a result beyond float rounding, so it is not a DVC param."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    batch: Annotated[int, Field(ge=1, le=4096)] | None
    workers: Annotated[int, Field(ge=1, le=1024)] | None
    processes: Annotated[int, Field(ge=1, le=1024)] | None
    pack: Annotated[int, Field(ge=1, le=4096)] | None
    reuse: bool
    checkpoint_every: int = Field(ge=1, le=1_000_000)


class TrackingSection(Section):
    """Where runs are logged. Never changes a result, so it is not a DVC param."""

    uri: str | None
    experiment: str = Field(min_length=1)
    required: bool
    pictures_every: Annotated[int, Field(ge=1, le=1_000_000)] | None
    system_every: Annotated[float, Field(gt=0, le=86_400)] | None


class SetSpec(Section):
    """One set: how many adapters it gives, and its sections with its own overrides merged in."""

    SECTIONS: ClassVar[tuple[str, ...]] = ("prepare", "train", "sample")

    adapter: Literal["image", "set"]
    prepare: PrepareSection
    train: TrainSection
    sample: SampleSection


class MorphSpec(Section):
    """One morph: the keyframes (file names in its set) in order, and its section with overrides merged in."""

    SECTIONS: ClassVar[tuple[str, ...]] = ("morph",)

    set: Key
    keyframes: tuple[Annotated[str, Field(min_length=1)], ...] = Field(strict=False, min_length=2)
    morph: MorphSection


class Params(Section):
    """All of params.yaml."""

    base: BaseSection
    sets: dict[Key, SetSpec] = Field(min_length=1)
    morphs: dict[Key, MorphSpec]
    prepare: PrepareSection
    train: TrainSection
    sample: SampleSection
    morph: MorphSection
    evaluate: EvaluateSection
    pocket: PocketSection
    machine: MachineSection
    tracking: TrackingSection

    def get_set(self, key: str) -> SetSpec:
        """The set of that key. Raises UserError when there is none."""
        return _entry("sets", self.sets, key)

    def get_morph(self, key: str) -> MorphSpec:
        """The morph of that key. Raises UserError when there is none."""
        return _entry("morphs", self.morphs, key)


def _entry(group: str, entries: Mapping[str, Entry], key: str) -> Entry:
    if key not in entries:
        there = ", ".join(sorted(entries)) or "none yet"
        raise UserError(Problem(f"params.yaml: {group}", f"there is no {key!r}", f"There are: {there}."))
    return entries[key]


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and validate params.yaml.

    Raises:
        UserError: with one problem for each mistake: the key's path, what was found and what it should be.
    """
    raw = _read_yaml(path)
    overrides = merge_overrides(raw, {"sets": SetSpec.SECTIONS, "morphs": MorphSpec.SECTIONS}, path)
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        written = [detail for detail in error.errors(include_url=False) if not is_inherited(detail["loc"], overrides)]
        raise UserError(*explain_errors(written, Params, path)) from None
    fix = f"Choose one of {', '.join(sorted(params.sets))}, or add it under `sets`."
    problems = [
        Problem(f"{path}: morphs.{key}.set", f"there is no set {morph.set!r}", fix)
        for key, morph in params.morphs.items()
        if morph.set not in params.sets
    ]
    if problems:
        raise UserError(*problems)
    return params


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = parse_yaml(read_plain(path, MOST).decode("utf-8"))
    except FileNotFoundError:
        problem = Problem(str(path), "the file is missing", "Run morphline at the top of the repository.")
    except OSError as error:
        problem = Problem(str(path), f"the file cannot be read ({error.strerror})", "Restore the file from Git.")
    except UnicodeDecodeError:
        problem = Problem(str(path), "the file is not UTF-8 text", "Save it as UTF-8.")
    except BadYaml as error:
        where = f"{path}:{error.line}" if error.line else str(path)
        problem = Problem(where, str(error), "Correct that line; indentation is by spaces.")
    else:
        if isinstance(raw, dict):
            return raw
        problem = Problem(str(path), "no mapping of sections at the top", "Restore the file from Git.")
    raise UserError(problem)
