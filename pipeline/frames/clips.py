"""Frames as files: PNGs, animated WebP and GIF, and MP4. The same frames always give the same bytes."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from pipeline.frames.tensors import Frame

_MP4_SHORT_SIDE = 256  # players do not enlarge a smaller clip, and half of its colour resolution is lost in 4:2:0
_BT709 = 1  # the number that H.264 has for this colour space, primaries and transfer, and for the narrow range


def write_frames(folder: Path, frames: Iterable[Frame], count: int) -> None:
    """Write `count` frames as 0000.png, 0001.png and so on into an existing folder, each as it comes."""
    for number, frame in enumerate(_checked(frames)):
        Image.fromarray(frame).save(folder / frame_name(number, count), format="PNG")


def frame_name(number: int, count: int) -> str:
    """The file name of one of `count` frames: four digits, or as many as keep the names in order."""
    return f"{number:0{max(4, len(str(count - 1)))}}.png"


def write_webp(path: Path, frames: Sequence[Frame], fps: float, hold_at: Collection[int] = (), hold: float = 0) -> None:
    """Write an endless animated WebP in the frames' own size, lossy at quality 90.

    Each frame is shown for 1/fps seconds, those with an index in `hold_at` for `hold` seconds more. WebP counts in
    milliseconds; rounding does not add up over the clip.
    """
    pictures = (Image.fromarray(frame) for frame in _checked(frames, hold_at))
    next(pictures).save(
        path,
        format="WEBP",
        save_all=True,
        append_images=pictures,
        duration=_durations(len(frames), fps, hold_at, hold, 1000),
        loop=0,
        quality=90,
        method=4,
    )


def write_mp4(
    path: Path,
    frames: Sequence[Frame],
    fps: float,
    hold_at: Collection[int] = (),
    hold: float = 0,
    enlarge: bool = True,
) -> None:
    """Write an H.264 MP4 that plays everywhere: 4:2:0, BT.709, its index at the front for the web.

    The frame rate is constant, so frames with an index in `hold_at` are repeated round(hold * fps) times. Frames with
    a short side under 256 pixels are enlarged by a whole factor (Lanczos) to at least that, unless `enlarge` is False;
    odd sides get one more row or column of edge pixels.
    """
    height, width = _fit_for_mp4(next(_checked(frames, hold_at)), enlarge).shape[:2]
    rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # One thread: the number of threads is written into the stream.
        stream = container.add_stream("libx264", rate=rate, options={"crf": "16", "preset": "slow", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = codec.color_range = _BT709
        for frame in _repeated(_checked(frames, hold_at), hold_at, round(hold * fps)):
            picture = av.VideoFrame.from_ndarray(_fit_for_mp4(frame, enlarge), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def write_gif(path: Path, frames: Sequence[Frame], fps: float, hold_at: Collection[int] = (), hold: float = 0) -> None:
    """Write an endless GIF, with a palette for each frame, dithered: a sunset has more than 256 colours.

    Timed as `write_webp` does, but in hundredths of a second.
    """
    dither = Image.Dither.FLOYDSTEINBERG
    pictures = (Image.fromarray(frame).quantize(256, dither=dither) for frame in _checked(frames, hold_at))
    durations = [10 * hundredths for hundredths in _durations(len(frames), fps, hold_at, hold, 100)]
    next(pictures).save(
        path, format="GIF", save_all=True, append_images=pictures, duration=durations, loop=0, disposal=1
    )


def _durations(count: int, fps: float, hold_at: Collection[int], hold: float, unit: int) -> list[int]:
    """How long each frame is shown, in 1/unit seconds, so that rounding does not add up."""
    seconds = [1 / fps + (hold if number in hold_at else 0) for number in range(count)]
    ends = np.rint(np.cumsum([0.0, *seconds]) * unit).astype(int)
    return np.diff(ends).tolist()


def _repeated(frames: Iterable[Frame], hold_at: Collection[int], repeats: int) -> Iterator[Frame]:
    for number, frame in enumerate(frames):
        for _ in range(1 + (repeats if number in hold_at else 0)):
            yield frame


def _fit_for_mp4(frame: Frame, enlarge: bool) -> Frame:
    height, width = frame.shape[:2]
    factor = -(-_MP4_SHORT_SIDE // min(height, width)) if enlarge else 1
    if factor > 1:
        picture = Image.fromarray(frame).resize((width * factor, height * factor), Image.Resampling.LANCZOS)
        frame = np.asarray(picture)
    odd = (frame.shape[0] % 2, frame.shape[1] % 2)
    return np.ascontiguousarray(np.pad(frame, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge"))


def _checked(frames: Iterable[Frame], hold_at: Collection[int] = ()) -> Iterator[Frame]:
    """The frames, each looked at on its way."""
    if isinstance(frames, Sequence):
        if not len(frames):
            raise ValueError("a clip needs at least one frame")
        if outside := [number for number in hold_at if not 0 <= number < len(frames)]:
            raise ValueError(f"hold_at names frames {outside}, but there are {len(frames)}")
    return _of_one_kind(frames)


def _of_one_kind(frames: Iterable[Frame]) -> Iterator[Frame]:
    shape: tuple[int, ...] = ()
    for number, frame in enumerate(frames):
        shape = shape or frame.shape
        if len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise ValueError(f"frames must be (H, W, 3), found {shape}")
        if frame.shape != shape or frame.dtype != np.uint8:
            raise ValueError(f"frame {number} is {frame.dtype} {frame.shape}, expected uint8 {shape}")
        yield frame
