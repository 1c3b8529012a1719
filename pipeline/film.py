"""A morph through any number of keyframes, as a library call: from an opened base and pictures to frames.

It trains nothing, reads no params.yaml and writes nothing. `stages/morph.py` is one caller, a notebook another: see
docs/python.md.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import torch
from accelerate import Accelerator

from pipeline.adapters.mixing import Adapter, WeightedAdapter
from pipeline.base.posterior import drawn_latents
from pipeline.base.protocol import Base
from pipeline.distances.features import Features, extract, feature_distance
from pipeline.morphing.diffmorpher import KeyframeAttention
from pipeline.morphing.engine import Bars, EncodedKeyframe, Recipe, invert_keyframes, morph_segment
from pipeline.morphing.pacing import even_alphas, paced_frames
from pipeline.processes.chunks import decided, one_each
from pipeline.sampling.adapted import adapted_conditioning
from pipeline.sections import MorphSection

MOST_SEEN = 256 * 2**20
"""Bytes of pictures of a segment that are kept between pacing, which looks at them, and their turn in the film."""

__all__ = ["Film", "FilmSettings", "Frame", "Keyframe", "Recipe", "draw_latents", "settings_of", "with_style"]


@dataclass(frozen=True)
class Keyframe:
    """A picture (3, H, W) float32 in [0, 1] that a film passes through, its caption, and its own weighted adapters.

    style: weighted adapters of others that the frames have besides; they change the picture, too.
    """

    picture: torch.Tensor
    caption: str
    adapters: tuple[WeightedAdapter, ...] = ()
    style: tuple[WeightedAdapter, ...] = ()


@dataclass(frozen=True)
class FilmSettings:
    """How a film is made. recipe: how each frame is. frames: of each segment, both keyframes included.

    pacing: "linear"; "perceptual", so that neighbours look equally far apart, chosen out of `pacing_spare` more frames
    than are needed; or the alphas themselves, rising from 0 to 1. loop: one more segment leads from the last keyframe
    back to the first.
    """

    recipe: Recipe = field(default_factory=Recipe)
    frames: int = 16
    pacing: Literal["linear", "perceptual"] | tuple[float, ...] = "perceptual"
    pacing_spare: int = 6
    loop: bool = False

    @property
    def frames_per_segment(self) -> int:
        """Frames of a segment, both keyframes included."""
        return self.frames if isinstance(self.pacing, str) else len(self.pacing)


@dataclass(frozen=True)
class Frame:
    """A generated picture (3, H, W) float32 in [0, 1] on the CPU, at `alpha` of a segment; segments count from 0."""

    picture: torch.Tensor
    segment: int
    alpha: float


class Film:
    """The frames from the first keyframe to the last, generated one segment at a time while one iterates.

    Each keyframe is a frame once, generated and never pasted in; of a loop the first is not repeated at the end.
    batch: samples in one call of the
    denoiser; None: all of a segment. accelerator: of the processes that share the work, and all iterate over the film.
    on_look: gets each picture (3, H, W) that pacing looks at, with its segment and alpha, long before the film has it.

    noise: (K, C, h, w), the keyframes' inverted noise, whose std is 1 at best. alphas: one tensor (F,) for each segment
    generated so far, both ends included.

    Raises:
        ValueError: for fewer than two keyframes, or pictures of different sizes.
    """

    def __init__(
        self,
        base: Base,
        keyframes: Sequence[Keyframe],
        settings: FilmSettings | None = None,
        *,
        batch: int | None = None,
        progress: Bars = lambda label: iter,
        accelerator: Accelerator | None = None,
        on_look: Callable[[int, float, torch.Tensor], None] = lambda segment, alpha, picture: None,
    ) -> None:
        sizes = {tuple(keyframe.picture.shape) for keyframe in keyframes}
        if len(keyframes) < 2 or len(sizes) != 1:
            found = f"{len(keyframes)} of {', '.join(map(str, sorted(sizes)))}"
            raise ValueError(f"a film needs two keyframes or more of one size, found {found}")
        self.base, self.settings = base, settings or FilmSettings()
        self.batch, self.progress, self.accelerator, self.on_look = batch, progress, accelerator, on_look
        latents = draw_latents(base, torch.stack([keyframe.picture for keyframe in keyframes]))
        captions = [keyframe.caption for keyframe in keyframes]
        own = adapted_conditioning(base, captions, [keyframe.adapters for keyframe in keyframes])
        styled = adapted_conditioning(base, captions, [(*keyframe.adapters, *keyframe.style) for keyframe in keyframes])
        self.keyframes = [
            EncodedKeyframe(latents[row], own.take([row]), keyframe.adapters, keyframe.style, styled.take([row]))
            for row, keyframe in enumerate(keyframes)
        ]
        self.noise = invert_keyframes(base, self.keyframes, self.settings.recipe, batch, progress, accelerator)
        self.alphas: list[torch.Tensor] = []

    @property
    def segments(self) -> list[tuple[int, int]]:
        """Which two keyframes each segment lies between."""
        rows = list(range(len(self.keyframes)))
        return list(pairwise([*rows, 0] if self.settings.loop else rows))

    @property
    def noise_std(self) -> float:
        """Standard deviation of the inverted noise, the mean over keyframes: 1 is ideal."""
        return float(self.noise.std(dim=(1, 2, 3)).mean())

    def __iter__(self) -> Iterator[Frame]:
        """Generate the film from its first frame on."""
        self.alphas = []
        segments, ends = self.segments, dict[int, torch.Tensor]()
        for number, (first, second) in enumerate(segments):
            # A keyframe is the end of two segments, and made for one of them.
            known = {alpha: ends[row] for alpha, row in ((0.0, first), (1.0, second)) if row in ends}
            bars, seen = self._bars(f"{number + 1}/{len(segments)}"), dict[float, torch.Tensor]()
            alphas, latents = self._segment(number, known, seen, bars)
            ends |= {first: latents[0], second: latents[-1]}
            self.alphas.append(alphas)
            start = 1 if number else 0
            stop = len(alphas) - (1 if self.settings.loop and number == len(segments) - 1 else 0)
            rows = range(start, stop)
            unseen = [row for row in rows if float(alphas[row]) not in seen]
            # Decoded one by one, so that the device never holds more than one picture.
            decoded = one_each([latents[row] for row in unseen], self._decoded, self.accelerator)
            for row in rows:
                alpha = float(alphas[row])
                yield Frame(seen.pop(alpha) if alpha in seen else next(decoded), number, alpha)

    def _segment(
        self,
        number: int,
        known: dict[float, torch.Tensor],
        seen: dict[float, torch.Tensor],
        bars: Bars,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Alphas (F,) float64 and latents (F, C, h, w) of a segment.

        known: those of its ends that are there. seen: gets the pictures that pacing has decoded, as many as MOST_SEEN.
        """
        settings, (first, second) = self.settings, self.segments[number]
        noise = self.noise[[first, second]]
        pair, found = (self.keyframes[first], self.keyframes[second]), dict(known)

        def make(alphas: torch.Tensor) -> torch.Tensor:
            if new := [alpha for alpha in alphas.tolist() if alpha not in found]:
                places = torch.tensor(new, dtype=torch.float64)
                made = morph_segment(
                    self.base, *pair, noise, places, settings.recipe, self.batch, bars, self.accelerator
                )
                found.update(zip(new, made, strict=True))
            return torch.stack([found[alpha] for alpha in alphas.tolist()])

        def shown(latent: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
            picture = self.base.decode(latent[None])
            return extract(picture).octaves, picture.cpu()[0]

        def look(alphas: Sequence[float], latents: torch.Tensor) -> list[Features]:
            features = []
            for alpha, (octaves, picture) in zip(alphas, one_each(list(latents), shown, self.accelerator), strict=True):
                features.append(Features(tuple(octave.to(self.base.device) for octave in octaves)))
                self.on_look(number, alpha, picture)
                if (len(seen) + 1) * picture.nbytes <= MOST_SEEN:
                    seen[alpha] = picture
            return features

        def decide(choose: Callable[[], list[float]]) -> list[float]:
            return decided(choose, self.accelerator)

        if settings.pacing == "perceptual":
            return paced_frames(make, look, _apart, settings.frames, settings.pacing_spare, decide)
        even = settings.pacing == "linear"
        alphas = even_alphas(settings.frames) if even else torch.tensor(settings.pacing, dtype=torch.float64)
        return alphas, make(alphas)

    def _decoded(self, latent: torch.Tensor) -> torch.Tensor:
        return self.base.decode(latent[None]).cpu()[0]

    def _bars(self, where: str) -> Bars:
        return lambda part: self.progress(f"{where} {part}")


def _apart(first: Features, second: Features) -> float:
    return float(feature_distance(first, second))


def draw_latents(base: Base, pictures: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) of pictures (B, 3, H, W): one draw from each posterior, always the same for a picture."""
    return drawn_latents(base.encode(pictures), pictures)


def settings_of(settings: MorphSection) -> FilmSettings:
    """The film's settings from the params."""
    attention = None
    if settings.attention and settings.attention_until > 0:
        attention = KeyframeAttention(settings.attention, settings.attention_until, settings.attention_source)
    recipe = Recipe(
        steps=settings.steps,
        inversion_steps=settings.inversion_steps,
        solver=settings.solver,
        use_adain=settings.adain,
        attention=attention,
        guidance=settings.guidance,
        rescale=settings.rescale,
        negative=settings.negative,
    )
    return FilmSettings(
        recipe=recipe,
        frames=settings.frames,
        pacing=settings.pacing,
        pacing_spare=settings.pacing_spare,
        loop=settings.loop,
    )


def with_style(keyframes: Sequence[Keyframe], style: Adapter, settings: MorphSection) -> list[Keyframe]:
    """The keyframes with a style whose weight goes evenly from the first one's to the last one's."""
    weights = torch.linspace(settings.style_from, settings.style_to, len(keyframes)).tolist()
    return [replace(each, style=((style, weight),)) for each, weight in zip(keyframes, weights, strict=True)]
