"""Frames as PNG, WebP, GIF and MP4."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.frames.clips import Frame, frame_name, write_frames, write_gif, write_mp4, write_webp


def _frames(count: int = 6, height: int = 64, width: int = 96) -> list[Frame]:
    """A bright bar that moves over a coloured gradient."""
    base = np.zeros((height, width, 3), np.uint8)
    base[..., 0] = np.linspace(0, 200, width, dtype=np.uint8)
    base[..., 2] = np.linspace(200, 0, height, dtype=np.uint8)[:, None]
    frames = [base.copy() for _ in range(count)]
    for number, frame in enumerate(frames):
        frame[:, number * 8 : number * 8 + 16] = (250, 220, 30)
    return frames


def _decoded(path: Path) -> tuple[list[Frame], list[float], Fraction | None]:
    """The frames of a clip, when each is shown in seconds, and the frame rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        pictures = list(container.decode(stream))
        frames = [picture.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray() for picture in pictures]
        return frames, [float(picture.time or 0) for picture in pictures], stream.average_rate


def test_frames_are_exact_and_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_frames(tmp_path, iter(_frames(3)), 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000.png", "0001.png", "0002.png"]
    for number, frame in enumerate(_frames(3)):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"000{number}.png")), frame)


@pytest.mark.parametrize(
    ("count", "first", "last"), [(10_000, "0000.png", "9999.png"), (10_001, "00000.png", "10000.png")]
)
def test_ten_thousand_frames_keep_their_order(count: int, first: str, last: str) -> None:
    names = [frame_name(number, count) for number in range(count)]
    assert names == sorted(names)
    assert (names[0], names[-1]) == (first, last)


def test_webp_shows_every_frame_for_its_time(tmp_path: Path) -> None:
    write_webp(tmp_path / "a.webp", _frames(), fps=6, hold_at=[0, 5], hold=0.5)
    with Image.open(tmp_path / "a.webp") as clip:
        assert (clip.n_frames, clip.size, clip.info["loop"]) == (6, (96, 64), 0)
        durations = []
        for number, frame in enumerate(_frames()):
            clip.seek(number)
            pixels = np.asarray(clip.convert("RGB")).astype(int)
            assert np.abs(pixels - frame).mean() < 2.5
            durations.append(clip.info["duration"])
    # a sixth of a second is 166.67 ms: rounded so that 6 frames and 2 holds are 2 s
    assert durations == [667, 166, 167, 167, 166, 667]


def test_gif_shows_every_frame_for_its_time(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", _frames(), fps=6, hold_at=[0, 5], hold=0.5)
    with Image.open(tmp_path / "a.gif") as clip:
        assert (clip.n_frames, clip.size, clip.info["loop"]) == (6, (96, 64), 0)
        durations = []
        for number, frame in enumerate(_frames()):
            clip.seek(number)
            pixels = np.asarray(clip.convert("RGB")).astype(int)
            assert np.abs(pixels - frame).mean() < 4  # 256 colours, dithered
            durations.append(clip.info["duration"])
    assert durations == [670, 160, 170, 170, 160, 670]  # 2 s in all


def test_mp4_plays_every_frame_and_holds_the_keyframes(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", _frames(6, 256, 320), fps=8, hold_at=[0, 5], hold=0.5)
    frames, times, rate = _decoded(tmp_path / "a.mp4")
    assert rate == 8
    assert times == [number / 8 for number in range(14)]
    expected = [0] * 5 + [1, 2, 3, 4] + [5] * 5  # half a second is four frames more
    for decoded, number in zip(frames, expected, strict=True):
        assert decoded.shape == (256, 320, 3)
        assert np.abs(decoded.astype(int) - _frames(6, 256, 320)[number]).mean() < 3


def test_mp4_plays_in_any_player(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", _frames(), fps=8)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is loaded
    with av.open(str(tmp_path / "a.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt, codec.colorspace, codec.color_range) == ("h264", "yuv420p", 1, 1)
        assert not container.streams.audio


@pytest.mark.parametrize(
    ("size", "played"),
    [
        ((64, 96), (256, 384)),  # a whole factor of 4
        ((128, 128), (256, 256)),
        ((200, 200), (400, 400)),
        ((257, 301), (258, 302)),  # odd sides gain a row and a column
        ((256, 1000), (256, 1000)),
    ],
)
def test_mp4_sizes(tmp_path: Path, size: tuple[int, int], played: tuple[int, int]) -> None:
    frames = _frames(2, *size)
    write_mp4(tmp_path / "a.mp4", frames, fps=8)
    decoded, _, _ = _decoded(tmp_path / "a.mp4")
    assert decoded[0].shape == (*played, 3)
    if size[0] % 2:
        assert np.abs(decoded[0][-1].astype(int) - decoded[0][-2]).mean() < 4  # the edge again, not black


def test_mp4_of_a_size_that_was_asked_for(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", _frames(2, 63, 96), fps=8, enlarge=False)
    assert _decoded(tmp_path / "a.mp4")[0][0].shape == (64, 96, 3)


@pytest.mark.parametrize(("fps", "rate"), [(29.97, Fraction(2997, 100)), (0.5, Fraction(1, 2)), (12, Fraction(12))])
def test_odd_frame_rates(tmp_path: Path, fps: float, rate: Fraction) -> None:
    write_mp4(tmp_path / "a.mp4", _frames(3), fps=fps)
    _, times, found = _decoded(tmp_path / "a.mp4")
    assert found == rate
    assert times == pytest.approx([0, 1 / fps, 2 / fps], abs=1e-4)


def test_one_frame_is_a_clip(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", _frames(1), fps=8)
    write_webp(tmp_path / "a.webp", _frames(1), fps=8)
    assert len(_decoded(tmp_path / "a.mp4")[0]) == 1


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_webp(tmp_path / name / "a.webp", _frames(), 8, [0], 0.5)
        write_mp4(tmp_path / name / "a.mp4", _frames(), 8, [0], 0.5)
        write_gif(tmp_path / name / "a.gif", _frames(), 8, [0], 0.5)
        write_frames(tmp_path / name, _frames(), len(_frames()))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("frames", "hold_at", "message"),
    [
        ([], [], "at least one frame"),
        ([np.zeros((8, 8), np.uint8)], [], r"\(H, W, 3\), found \(8, 8\)"),
        ([np.zeros((8, 8, 3), np.float32)], [], "frame 0 is float32"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], [], "frame 1 is uint8 .8, 9, 3."),
        ([np.zeros((8, 8, 3), np.uint8)], [1], r"hold_at names frames \[1\], but there are 1"),
    ],
)
def test_frames_that_make_no_clip_are_refused(
    tmp_path: Path, frames: list[Frame], hold_at: list[int], message: str
) -> None:
    for write in (write_webp, write_gif, write_mp4):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "a.clip", frames, 8, hold_at, 1)
