"""The sections of params.yaml as frozen models, plain values that all of the code may take."""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Byte = Annotated[int, Field(ge=0, le=255)]


def _rising(alphas: tuple[float, ...]) -> tuple[float, ...]:
    if alphas[0] != 0 or alphas[-1] != 1 or any(b <= a for a, b in pairwise(alphas)):
        raise ValueError("alphas should rise from 0 to 1")
    return alphas


def _different(scales: tuple[float, ...]) -> tuple[float, ...]:
    if len({f"{scale:g}" for scale in scales}) < len(scales):  # they name columns and folders
        raise ValueError("scales should differ from each other")
    return scales


def _off_at_zero(rate: float | None) -> float | None:
    return rate or None  # one value for one meaning: the adapters of 0 and of null are the same files


def _invertible(solver: object) -> object:
    if solver == "consistency":  # named, since the other sections have it
        raise ValueError("consistency jumps and cannot be inverted: use midpoint or ddim")
    return solver


Alphas = Annotated[tuple[Fraction, ...], Field(strict=False, min_length=3), AfterValidator(_rising)]


class Section(BaseModel):
    """A frozen mapping of params.yaml: unknown keys and implicit conversions are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class BaseAdapter(Section):
    """A file of an adapter that lies under everything. digest: of the file, so that another is never taken for it."""

    file: str = Field(min_length=1)
    digest: str | None
    weight: float = Field(ge=-4, le=4)


class BaseSection(Section):
    """The frozen diffusion model that adapters are trained on. KEY: its place in params.yaml, for messages."""

    KEY: ClassVar[str] = "base"

    source: str = Field(min_length=1)
    revision: str | None
    config: str | None
    dtype: Literal["float32", "tf32", "bfloat16", "float16"]
    clip_skip: int = Field(ge=0, le=30)
    adapters: tuple[BaseAdapter, ...] = Field(strict=False, max_length=8)

    def tags(self) -> dict[str, str]:
        """Which base it is, for tracking."""
        return {"base.source": self.source, "base.revision": self.revision or "as in the repository"}


class RefinerBase(BaseSection):
    """A refiner as the base that it is, opened and checked as one."""

    KEY: ClassVar[str] = "refiner"


class RefinerSection(Section):
    """A second base, for the last steps of samples and edits; none where `source` is null."""

    model_config = ConfigDict(serialize_by_alias=True)

    source: Annotated[str, Field(min_length=1)] | None
    revision: str | None
    start: float = Field(gt=0, lt=1, alias="from")

    def as_base(self, base: BaseSection) -> RefinerBase | None:
        """What is opened, in the precision of the base whose steps it ends and with its captions; None: no refiner."""
        if self.source is None:
            return None
        return RefinerBase(
            source=self.source,
            revision=self.revision,
            config=None,
            dtype=base.dtype,
            clip_skip=base.clip_skip,
            adapters=(),
        )


class PrepareSection(Section):
    """How raw pictures become training pictures."""

    width: int = Field(ge=64, le=4096, multiple_of=8)
    height: int = Field(ge=64, le=4096, multiple_of=8)
    resample: Literal["lanczos", "bicubic", "area"]
    background: tuple[Byte, ...] = Field(strict=False, min_length=3, max_length=3)
    max_megapixels: float = Field(gt=0, le=1000)


class TrainSection(Section):
    """How an adapter is trained."""

    objective: Literal["denoise", "consistency", "smooth"]
    guidance_from: float = Field(ge=1, le=50)
    guidance_to: float = Field(ge=1, le=50)
    consistency_skip: int = Field(ge=1, le=25)
    smooth_weight: float = Field(ge=0, le=1000)
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
    text_rate: Annotated[Annotated[float, Field(ge=0, le=1)] | None, AfterValidator(_off_at_zero)]
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
    solver: Literal["midpoint", "ddim", "consistency"]
    fresh_noise: Fraction
    steps: int = Field(ge=2, le=1000)
    guidance: float = Field(ge=1, le=50)
    seed: int = Field(ge=0, lt=2**63)


FRAMES_OF_TWO = 31
"""Of a morph through two pictures, at least, where nothing else is said: it would be over in two seconds."""
SLOWEST_FPS, FASTEST_FPS = 0.01, 120
"""Of clips: a frame of a WebP lies at a whole millisecond, in 32 bits."""


class MorphSection(Section):
    """How the frames between keyframes are made."""

    frames: int = Field(ge=3, le=10_000)
    steps: int = Field(ge=2, le=1000)
    inversion_steps: int = Field(ge=2, le=1000)
    solver: Annotated[Literal["midpoint", "ddim"], BeforeValidator(_invertible)]
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
    pacing_spare: int = Field(ge=0, le=100)
    without_adapters: bool
    style_from: float = Field(ge=-4, le=4)
    style_to: float = Field(ge=-4, le=4)
    loop: bool
    correct_ends: Fraction
    fps: float = Field(ge=SLOWEST_FPS, le=FASTEST_FPS)
    hold: float = Field(ge=0, le=60)

    @property
    def least_batch(self) -> int:
        """Samples that go through the denoiser at once for one frame: two under guidance, its endpoints beside it for
        attention."""
        beside = 2 if self.attention and self.attention_until > 0 else 0
        return (beside + 1) * (1 if self.guidance == 1 else 2)


class ControlSection(Section):
    """The edges that an edit keeps, and the ControlNet that sees to it."""

    source: str = Field(min_length=1)
    revision: str | None
    sigma: float = Field(ge=0, le=100)
    low: float = Field(gt=0, le=4)
    high: float = Field(gt=0, le=4)
    scale: float = Field(ge=0, le=4)
    start: Fraction
    end: Fraction


class EditSection(Section):
    """How the pictures of a set are changed."""

    caption: str | None
    suffix: str
    start: Literal["inversion", "noise"]
    strength: Fraction
    solver: Literal["midpoint", "ddim", "consistency"]
    fresh_noise: Fraction
    steps: int = Field(ge=1, le=1000)
    guidance: float = Field(ge=1, le=50)
    negative: str
    scales: Annotated[
        tuple[Annotated[float, Field(ge=-4, le=4)], ...],
        Field(strict=False, min_length=1, max_length=16),
        AfterValidator(_different),
    ]
    within_masks: bool
    control: ControlSection | None
    seed: int = Field(ge=0, lt=2**63)


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


class ControlNetSection(Section):
    """How the ControlNet that ships beside the pocket is made."""

    seed: int = Field(ge=0, le=99)
    paintings: int = Field(ge=16, le=10_000_000)
    steps: int = Field(ge=1, le=10_000_000)
    batch: int = Field(ge=1, le=4096)
    rate: float = Field(gt=0, le=1)
    ema: float = Field(ge=0, lt=1)


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

    model_config = ConfigDict(serialize_by_alias=True)

    uri: str | None
    experiment: str = Field(min_length=1, max_length=256)
    required: bool
    pictures_every: Annotated[int, Field(ge=1, le=1_000_000)] | None
    system_every: Annotated[float, Field(gt=0, le=86_400)] | None
    registers: bool = Field(alias="register")
