"""A picture whose data ends before its last rows is refused, wherever it ends, and even where the file then ends in
good order; a whole one never is."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.pictures.preparing import prepare_set
from pipeline.pictures.reading import FORMATS, UnreadablePicture, load_picture
from tests.hostile.generators import hostile
from tests.pictures.samples import noise, only_message, settings, write_rows

WIDTH, HEIGHT = 61, 45


def photo(mode: str = "RGB", below: int | None = None) -> Image.Image:
    """Coarse and fine noise. below: the colour of its lower half, as of a sky or a page."""
    rough = np.kron(noise(6, 8, 1), np.ones((8, 8, 1), dtype=np.uint8))[:HEIGHT, :WIDTH]
    pixels = rough // 2 + noise(HEIGHT, WIDTH, 2) // 8 + 64
    if below is not None:
        pixels[HEIGHT // 2 :] = below
    return Image.fromarray(pixels).convert(mode)


def encoded(kind: str, picture: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (picture or photo()).save(buffer, kind, **options)
    return buffer.getvalue()


def several(kind: str, **options: object) -> bytes:
    return encoded(kind, save_all=True, append_images=[photo(below=9)], **options)


JPEGS = {
    "plain": encoded("JPEG"),
    "finest": encoded("JPEG", quality=100, subsampling=0),
    "coarsest": encoded("JPEG", quality=3),
    "own codes": encoded("JPEG", optimize=True),
    "grey": encoded("JPEG", photo("L")),
    "four inks": encoded("JPEG", photo("CMYK")),
    "white below": encoded("JPEG", photo(below=255)),
    "black below": encoded("JPEG", photo("L", below=0)),
    "progressive": encoded("JPEG", progressive=True),
    "progressive grey": encoded("JPEG", photo("L", below=255), progressive=True),
    "restarts": encoded("JPEG", restart_marker_rows=1),
    "many restarts": encoded("JPEG", photo(below=255), restart_marker_blocks=2),
    "progressive restarts": encoded("JPEG", progressive=True, restart_marker_rows=2),
    "two pictures": several("MPO"),
}
WHOLE = {
    **{f"JPEG {name}": content for name, content in JPEGS.items()},
    "PNG": encoded("PNG"),
    "PNG animation": several("PNG"),
    "GIF": encoded("GIF"),
    "GIF grey": encoded("GIF", photo("L", below=255), interlace=0),
    "GIF animation": several("GIF"),
    "WEBP": encoded("WEBP"),
    "WEBP lossless": encoded("WEBP", lossless=True),
    "WEBP animation": several("WEBP"),
    "BMP": encoded("BMP"),
    "PPM": encoded("PPM"),
    "TIFF": encoded("TIFF"),
    "TIFF LZW": encoded("TIFF", compression="tiff_lzw"),
    "TIFF JPEG": encoded("TIFF", compression="jpeg"),
    "JPEG2000": encoded("JPEG2000"),
    "JPEG2000 codes alone": encoded("JPEG2000", no_jp2=True, quality_mode="rates", quality_layers=[20]),
    "AVIF": encoded("AVIF"),
}


def end_jpeg(content: bytes) -> bytes:
    return content + b"\xff\xd9"


def end_gif(content: bytes) -> bytes:
    """The last block of data as long as it is, a block of none, and the end."""
    place = gif_data(WHOLE["GIF"])
    while place < len(content):
        length = min(content[place], len(content) - place - 1)
        content = content[:place] + bytes([length]) + content[place + 1 :]
        place += 1 + length if length else len(content)
    return content + b"\0;"


def gif_data(content: bytes) -> int:
    with Image.open(io.BytesIO(content)) as image:
        return int(image.tile[0].offset)


def end_webp(content: bytes) -> bytes:
    """Lengths of the file and of its one chunk as they are."""
    chunk = len(content) - 20
    padded = content + bytes(len(content) % 2)
    return padded[:4] + struct.pack("<I", len(padded) - 8) + padded[8:16] + struct.pack("<I", chunk) + padded[20:]


def end_png(content: bytes) -> bytes:
    place = content.index(b"IDAT") - 4
    data = content[place + 8 :]
    parts = [b"IDAT" + data, b"IEND"]
    return content[:place] + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts
    )


def cuts(content: bytes, start: int) -> st.SearchStrategy[int]:
    """Any place from `start` on, and the last bytes more often: there a single row is lost, or a single block."""
    return st.integers(start, len(content) - 1) | st.integers(max(start, len(content) - 40), len(content) - 1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cut") / "picture"


def refused_or_whole(file: Path, content: bytes, cut: bytes) -> None:
    """A picture that is taken all the same must be the whole one: to the pixel, but for the last bits of a JPEG's last
    block, which are less than a level or two."""
    file.write_bytes(content)
    whole = load_picture(file, 1).image
    file.write_bytes(cut)
    try:
        picture = load_picture(file, 1).image
    except UnreadablePicture as refused:
        assert refused.found and refused.fix
    else:
        assert picture.mode == whole.mode
        differences = np.abs(np.asarray(picture, dtype=int) - np.asarray(whole, dtype=int))
        assert differences.max() <= (2 if content[:2] == b"\xff\xd8" else 0)


def test_every_format_is_cut_here() -> None:
    assert {name.split()[0] for name in WHOLE} == set(FORMATS)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_pictures_are_taken(file: Path, name: str) -> None:
    file.write_bytes(WHOLE[name])
    assert load_picture(file, 1).image.size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_is_cut_is_refused_or_lacks_nothing(file: Path, name: str) -> None:
    content = WHOLE[name]

    @hostile(25)
    @given(end=cuts(content, 1))
    @example(end=max(content.find(b"\xff\x90"), 0) + 2)  # in a JPEG 2000 where the first tile begins
    def check(end: int) -> None:
        refused_or_whole(file, content, content[:end])

    check()


ENDED: list[tuple[str, Callable[[bytes], bytes], int]] = [
    *((f"JPEG {name}", end_jpeg, content.index(b"\xff\xda")) for name, content in JPEGS.items()),
    *((name, end_gif, gif_data(WHOLE[name]) + 2) for name in ("GIF",)),
    *((name, end_webp, 40) for name in ("WEBP", "WEBP lossless")),
    ("PNG", end_png, WHOLE["PNG"].index(b"IDAT") + 4),
    ("JPEG2000 codes alone", end_jpeg, 40),
]


@pytest.mark.parametrize(("name", "ended", "start"), ENDED, ids=[name for name, *_ in ENDED])
def test_so_is_one_that_then_ends_in_good_order(
    file: Path, name: str, ended: Callable[[bytes], bytes], start: int
) -> None:
    """As a program writes it that received half a picture, or an editor that mended one."""
    content = WHOLE[name]
    if name == "JPEG two pictures":
        content = content[: content.index(b"\xff\xd9") + 2]

    @hostile(60)
    @given(end=cuts(content, start))
    @example(end=len(content) - 3)
    @example(end=start)
    def check(end: int) -> None:
        refused_or_whole(file, content, ended(content[:end]))

    check()


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_without_its_last_rows_says_so(file: Path, name: str) -> None:
    content = JPEGS[name]
    start, end = content.index(b"\xff\xda"), content.index(b"\xff\xd9")
    file.write_bytes(end_jpeg(content[: start + (end - start) * 9 // 10]))
    with pytest.raises(UnreadablePicture, match=f"only a part of its {WIDTH}x{HEIGHT} pixels"):
        load_picture(file, 1)


def ends_of_scans(content: bytes) -> Iterator[int]:
    place = 0
    while (place := content.find(b"\xff\xda", place + 2)) > 0:
        yield max(content.rfind(b"\xff\xc4", 0, place), 0) or place


def test_a_progressive_jpeg_must_have_all_of_its_scans(file: Path) -> None:
    """Each cut lies between two scans: no scan lacks anything, and the picture is a blur of the whole one."""
    content = JPEGS["progressive"]
    places = sorted({place for place in ends_of_scans(content) if place > content.index(b"\xff\xda")})
    assert len(places) > 3
    for place in places:
        file.write_bytes(end_jpeg(content[:place]))
        with pytest.raises(UnreadablePicture, match="only a part"):
            load_picture(file, 1)


@pytest.mark.parametrize("after", [b";", b";" + bytes(1000), b"\x01\x01" * 500, WHOLE["GIF"]])
def test_a_gif_whose_codes_end_early_is_refused(file: Path, after: bytes) -> None:
    """Codes of three bits for a picture of 4x4: clear (4), 1, 1, and an end (5) or none, where 16 pixels were due.
    What follows the data, such as another frame, must not be taken for it."""
    header = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes(6)
    descriptor = b"," + struct.pack("<HHHHB", 0, 0, 4, 4, 0) + b"\x02"

    def packed(codes: list[int]) -> bytes:
        bits = sum(code << (3 * place) for place, code in enumerate(codes))
        data = bits.to_bytes(-(-3 * len(codes) // 8), "little")
        return header + descriptor + bytes([len(data)]) + data + b"\0" + after

    for codes in ([4, 1, 1, 5], [4, 1, 1], [4]):
        file.write_bytes(packed(codes))
        with pytest.raises(UnreadablePicture, match=r"only a part of its 4x4 pixels|truncated"):
            load_picture(file, 1)
    file.write_bytes(packed([code for _ in range(8) for code in (4, 1, 1)] + [5]))
    assert load_picture(file, 1).image.size == (4, 4)


def test_a_frame_smaller_than_its_gif_lacks_nothing(file: Path) -> None:
    first = Image.new("P", (30, 20), 3)
    content = bytearray(encoded("GIF", first))
    content[6:10] = struct.pack("<HH", 90, 70)  # the canvas; what lies beside the frame is background
    file.write_bytes(content)
    assert load_picture(file, 1).image.size == (90, 70)


def test_check_add_and_prepare_refuse_it(project: Path, tmp_path: Path) -> None:
    folder, whole = tmp_path / "half", tmp_path / "whole.png"
    folder.mkdir()
    whole.write_bytes(WHOLE["PNG"])
    for name, suffix in (("JPEG plain", "jpg"), ("GIF", "gif"), ("WEBP", "webp")):
        content = WHOLE[name]
        end = {"jpg": end_jpeg, "gif": end_gif, "webp": end_webp}[suffix]
        (folder / f"a.{suffix}").write_bytes(end(content[: len(content) * 9 // 10]))
        write_rows(folder, {"file_name": f"a.{suffix}", "text": "a hill"})
        only_message(folder, f"metadata.jsonl:1: 'a.{suffix}': ")
        with pytest.raises(UserError, match=rf"half/a\.{suffix}: "):
            prepare_set(folder, tmp_path / "out", settings(), workers=1)
        pictures = [str(folder / f"a.{suffix}"), str(whole)]
        answer = CliRunner().invoke(app, ["add", "half", *pictures, "--caption", "a hill", "--caption", "a lake"])
        assert answer.exit_code == 1 and f"a.{suffix}" in answer.stderr and "Traceback" not in answer.stderr
        (folder / f"a.{suffix}").unlink()
    assert not (tmp_path / "out").exists() and not Path("data/raw/half").exists()
