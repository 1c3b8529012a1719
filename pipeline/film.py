"""A morph through any number of keyframes, as a library call: from an opened base and pictures to frames.

It trains nothing, reads no params.yaml and writes nothing. `stages/morph.py` is one caller, a notebook another: see
"From Python" in the README.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import torch

from pipeline.adapters.mixing import WeightedAdapter
from pipeline.base.posterior import Posterior, keyed_seed
from pipeline.base.protocol import Base
from pipeline.distances.perceptual import perceptual
from pipeline.morphing.engine import Bars, EncodedKeyframe, Recipe, invert_keyframes, morph_segment, paced_alphas
from pipeline.morphing.pacing import even_alphas

__all__ = ["Film", "FilmSettings", "Frame", "Keyframe", "Recipe", "draw_latents"]


@dataclass(frozen=True)
class Keyframe:
    """A picture (3, H, W) float32 in [0, 1] that a film passes through, its caption, and its own weighted adapters."""

    picture: torch.Tensor
    caption: str
    adapters: tuple[WeightedAdapter, ...] = ()


@dataclass(frozen=True)
class FilmSettings:
    """How a film is made. recipe: how each frame is. frames: of each segment, both keyframes included.

    pacing: "linear"; "perceptual", so that neighbours look equally far apart, measured by a coarse pass of
    `pacing_points` frames in `pacing_steps` steps; or the alphas themselves, rising from 0 to 1. loop: one more
    segment leads from the last keyframe back to the first.
    """

    recipe: Recipe = field(default_factory=Recipe)
    frames: int = 16
    pacing: Literal["linear", "perceptual"] | tuple[float, ...] = "perceptual"
    pacing_steps: int = 4
    pacing_points: int = 17
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
    style: weighted adapters over the whole film, on top of the keyframes' own. batch: samples in one call of the
    denoiser; None: all of a segment.

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
        style: Sequence[WeightedAdapter] = (),
        batch: int | None = None,
        progress: Bars = lambda label: iter,
    ) -> None:
        sizes = {tuple(keyframe.picture.shape) for keyframe in keyframes}
        if len(keyframes) < 2 or len(sizes) != 1:
            found = f"{len(keyframes)} of {', '.join(map(str, sorted(sizes)))}"
            raise ValueError(f"a film needs two keyframes or more of one size, found {found}")
        self.base, self.settings = base, settings or FilmSettings()
        self.batch, self.progress = batch, progress
        latents = draw_latents(base, torch.stack([keyframe.picture for keyframe in keyframes]))
        conditioning = base.condition([keyframe.caption for keyframe in keyframes])
        self.keyframes = [
            EncodedKeyframe(latents[row], conditioning.take([row]), (*keyframe.adapters, *style))
            for row, keyframe in enumerate(keyframes)
        ]
        self.noise = invert_keyframes(base, self.keyframes, self.settings.recipe, batch, progress)
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
        segments = self.segments
        for number, ends in enumerate(segments):
            bars = self._bars(f"{number + 1}/{len(segments)}")
            alphas = self._alphas(ends, bars)
            latents = self._segment(ends, alphas, bars)
            self.alphas.append(alphas)
            first = 1 if number else 0
            last = len(alphas) - (1 if self.settings.loop and number == len(segments) - 1 else 0)
            for row in range(first, last):
                # Decoded one by one, so that the device never holds more than one picture.
                picture = self.base.decode(latents[row, None]).cpu()[0]
                yield Frame(picture, number, float(alphas[row]))

    def _segment(self, ends: tuple[int, int], alphas: torch.Tensor, bars: Bars) -> torch.Tensor:
        first, second = (self.keyframes[row] for row in ends)
        noise = self.noise[list(ends)]
        return morph_segment(self.base, first, second, noise, alphas, self.settings.recipe, self.batch, bars)

    def _alphas(self, ends: tuple[int, int], bars: Bars) -> torch.Tensor:
        """Where the frames of a segment lie, (F,) float64."""
        settings = self.settings
        if not isinstance(settings.pacing, str):
            return torch.tensor(settings.pacing, dtype=torch.float64)
        if settings.pacing == "linear":
            return even_alphas(settings.frames)

        def distances(latents: torch.Tensor) -> torch.Tensor:
            pictures = self.base.decode(latents)
            return perceptual(pictures[:-1], pictures[1:])

        first, second = (self.keyframes[row] for row in ends)
        return paced_alphas(
            self.base,
            first,
            second,
            self.noise[list(ends)],
            settings.frames,
            replace(settings.recipe, steps=settings.pacing_steps),
            settings.pacing_points,
            distances,
            self.batch,
            bars,
        )

    def _bars(self, where: str) -> Bars:
        return lambda part: self.progress(f"{where} {part}")


def draw_latents(base: Base, pictures: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) of pictures (B, 3, H, W): one draw from each posterior, always the same for a picture.

    Not the mean: the base was trained on draws, and means lie where it has seen nothing, so that inverting them gives
    noise that is too small.
    """
    posterior = base.encode(pictures)
    drawn = []
    for picture, mean, std in zip(pictures, posterior.mean, posterior.std, strict=True):
        generator = torch.Generator().manual_seed(keyed_seed(hashlib.sha256(picture.numpy().tobytes()).hexdigest()))
        drawn.append(Posterior(mean[None], std[None]).sample(generator))
    return torch.cat(drawn)
