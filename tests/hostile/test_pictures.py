"""Raw sets whose files are anything: each mistake is a problem or nothing, never another error, a hang or a leak."""

import io
import json
import os
import struct
import threading
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import UserError
from pipeline.pictures import metadata
from pipeline.pictures.imagefolder import find_problems
from pipeline.pictures.metadata import read_metadata
from pipeline.pictures.preparing import prepare_picture, prepare_set
from pipeline.pictures.reading import UnreadablePicture, load_picture
from pipeline.pictures.rows import Row
from tests.hostile.generators import damaged, hostile, is_plain, json_leaves, json_values
from tests.pictures.samples import noise, settings, write_picture, write_rows


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(20, 30)).save(buffer, kind, **options)
    return buffer.getvalue()


SAMPLES = [
    encoded("PNG"), encoded("JPEG"), encoded("JPEG", progressive=True), encoded("GIF"), encoded("WEBP"),
    encoded("TIFF"), encoded("TIFF", compression="tiff_lzw"), encoded("BMP"), encoded("PPM"), encoded("JPEG2000"),
]  # fmt: skip


@hostile(300)
@given(content=st.sampled_from(SAMPLES).flatmap(damaged) | st.binary(max_size=200))
def test_any_bytes_are_a_picture_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    try:
        picture = load_picture(path, 1)
    except UnreadablePicture as refused:
        assert refused.found and refused.fix
        return
    assert picture.image.width * picture.image.height <= 1e6
    image, entry = prepare_picture(path, Row(file_name="any", text="a"), settings())
    assert image.mode == "RGB" and json.dumps(entry)


@hostile(300)
@given(
    lines=st.lists(
        st.binary(max_size=80)
        | json_values.map(lambda value: json.dumps(value).encode())
        | st.dictionaries(
            st.sampled_from(["file_name", "text", "focus", "box", "mask", "Focus", "prompt"]), json_leaves | json_values
        ).map(lambda row: json.dumps(row).encode()),
        max_size=5,
    )
)
def test_any_metadata_is_rows_or_problems(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    folder = tmp_path_factory.getbasetemp() / "rows"
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_bytes(b"\n".join(lines))
    read, problems = read_metadata(folder)
    assert problems or all(line.row for line in read)
    for problem in find_problems(folder, max_megapixels=1):
        assert is_plain(str(problem)) and len(str(problem)) < 3000


def png(width: int, height: int, rows: bytes, interlaced: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_picture_must_hold_the_pixels_that_it_claims(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(png(9999, 9999, b"\0" + bytes(3 * 9999)))
    with pytest.raises(UnreadablePicture, match="only a part of its 9999x9999 pixels"):
        load_picture(path, 100)
    jpeg = bytearray(encoded("JPEG"))
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 5 : place + 9] = struct.pack(">HH", 9999, 9999)
    path.write_bytes(jpeg)
    with pytest.raises(UnreadablePicture, match="only a part of its 9999x9999 pixels"):
        load_picture(path, 100)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 2), (8, 8), (13, 7)])
def test_whole_pictures_are_whole(tmp_path: Path, width: int, height: int) -> None:
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    sizes = [(len(range(left, width, across)), len(range(top, height, down))) for left, top, across, down in passes]
    interlaced = b"".join((b"\0" + bytes(3 * wide)) * high for wide, high in sizes if wide)
    plain = (b"\0" + bytes(3 * width)) * height
    for rows, kind in ((plain, 0), (interlaced, 1)):
        (tmp_path / "a").write_bytes(png(width, height, rows, kind))
        assert load_picture(tmp_path / "a", 1).image.size == (width, height)
        (tmp_path / "a").write_bytes(png(width, height, rows[:-1], kind))
        with pytest.raises(UnreadablePicture):
            load_picture(tmp_path / "a", 1)
    for kind, options in (("JPEG", {"quality": 1, "progressive": True}), ("GIF", {})):
        Image.new("L", (1500, 1500)).save(tmp_path / "flat", kind, **options)
        assert load_picture(tmp_path / "flat", 10).image.size == (1500, 1500)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    write_picture(folder / "a.png")
    write_rows(folder, {"file_name": "a.png", "text": "one"})
    return folder


def in_time(call: object, seconds: float = 10) -> None:
    """Fails where a call waits for ever, as for a pipe that nobody writes to."""
    thread = threading.Thread(target=call, daemon=True)  # type: ignore[arg-type]
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive()


def test_preparing_refuses_links_and_pipes_as_check_does(folder: Path, tmp_path: Path) -> None:
    picture, out = folder / "a.png", tmp_path / "out"
    picture.rename(tmp_path / "outside.png")
    picture.symlink_to(tmp_path / "outside.png")
    with pytest.raises(UserError, match="'a.png' is a link that leaves the folder"):
        prepare_set(folder, out, settings(), workers=1)
    picture.unlink()
    os.mkfifo(picture)
    refused: list[str] = []

    def prepare() -> None:
        with pytest.raises(UserError) as error:
            prepare_set(folder, out, settings(), workers=1)
        refused.append(str(error.value))

    in_time(prepare)
    assert "cannot be opened (a pipe, not a file)" in refused[0] and not out.exists()


def said(folder: Path) -> str:
    """The one problem of a set's metadata."""
    (problem,) = read_metadata(folder)[1]
    return str(problem)


def test_metadata_may_be_no_pipe_link_or_flood(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = folder / "metadata.jsonl"
    rows.rename(tmp_path / "outside.jsonl")
    rows.symlink_to(tmp_path / "outside.jsonl")
    assert "metadata.jsonl: a link that leaves the folder" in said(folder)
    rows.unlink()
    os.mkfifo(rows)
    in_time(lambda: said(folder).index("metadata.jsonl: not a file"))
    rows.unlink()
    with rows.open("wb") as file:
        file.truncate(3 * 2**30)  # a hole: three GB that take no place on the disk
    assert "metadata.jsonl: the file cannot be read (larger than 64 MB)" in said(folder)
    write_rows(folder, {"file_name": "a.png", "text": "x" * 1_000_001})
    assert "metadata.jsonl:1: a line of 1000" in said(folder)
    monkeypatch.setattr(metadata, "MOST_ROWS", 3)
    write_rows(folder, *[{"file_name": f"{number}.png", "text": "a"} for number in range(9)])
    assert "metadata.jsonl:4: more than 3 rows" in said(folder)
