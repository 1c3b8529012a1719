"""Pictures as tensors in [0, 1], for models, and as uint8 arrays, for files."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.outputs import reading

Frame = NDArray[np.uint8]
"""One picture: (H, W, 3) uint8, sRGB."""


def to_arrays(pictures: torch.Tensor) -> list[Frame]:
    """(N, 3, H, W) in [0, 1] to N arrays (H, W, 3) uint8, rounded to the nearest."""
    scaled = (pictures.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return list(scaled.permute(0, 2, 3, 1).cpu().numpy())


def from_arrays(frames: Sequence[Frame]) -> torch.Tensor:
    """N arrays (H, W, 3) uint8 to (N, 3, H, W) float32 in [0, 1]."""
    return torch.stack([torch.from_numpy(frame).permute(2, 0, 1).float() / 255 for frame in frames])


def read_arrays(paths: Iterable[Path]) -> list[Frame]:
    """Pictures that stages have made, as arrays (H, W, 3) uint8.

    Raises:
        UserError: for one that is missing, damaged, or of another size than the first.
    """
    frames = list[Frame]()
    for path in paths:
        with reading(path):
            with Image.open(path) as image:
                frame = np.array(image.convert("RGB"))
            if frames and frame.shape != frames[0].shape:
                raise ValueError(f"{frame.shape[1]}x{frame.shape[0]} pixels, others have another size")
            frames.append(frame)
    return frames


class LazyFrames(Sequence[Frame]):
    """Frames that are each made when asked for, so that a long film never lies in memory. A subclass gives `frame`."""

    @abstractmethod
    def frame(self, number: int) -> Frame:
        """Frame `number`, from 0 to below the count."""

    @overload
    def __getitem__(self, number: int) -> Frame: ...
    @overload
    def __getitem__(self, number: slice) -> list[Frame]: ...
    def __getitem__(self, number: int | slice) -> Frame | list[Frame]:
        if isinstance(number, slice):
            return [self.frame(one) for one in range(*number.indices(len(self)))]
        return self.frame(range(len(self))[number])


@dataclass(frozen=True)
class FrameFiles(LazyFrames):
    """Pictures in files."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def frame(self, number: int) -> Frame:
        """Read from its file."""
        return read_arrays([self.paths[number]])[0]


@dataclass(frozen=True)
class ResizedFrames(LazyFrames):
    """Frames whose longer side has `side` pixels."""

    frames: Sequence[Frame]
    side: int

    def __len__(self) -> int:
        return len(self.frames)

    def frame(self, number: int) -> Frame:
        """Resized."""
        return resized(self.frames[number], self.side)


@dataclass(frozen=True)
class PictureFiles:
    """Pictures in files of one size, read as tensors (n, 3, H, W) float32 in [0, 1] when they are asked for."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, numbers: Sequence[int]) -> torch.Tensor:
        return read_pictures(self.paths[number] for number in numbers)


def read_pictures(paths: Iterable[Path]) -> torch.Tensor:
    """RGB pictures of one size to (N, 3, H, W) float32 in [0, 1]."""
    return from_arrays(read_arrays(paths))


def resized(frame: Frame, side: int) -> Frame:
    """A frame whose longer side has `side` pixels (Lanczos)."""
    height, width = frame.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
